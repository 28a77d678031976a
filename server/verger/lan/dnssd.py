"""Advertises a server through the system's mDNSResponder: macOS, by ctypes.

Made by `advertise.make_advertiser`. The responder outlives sleep and changes of network, renames
what conflicts (`office-mini (2)`), and withdraws what a dead process has registered. It is told of
each interface by its index; the host and its addresses are its own affair. Belongs to one event
loop. The library's calls wait for the responder and must not overlap, so one thread makes them all.

API: dns_sd.h of Apple's mDNSResponder ("DNS Service Discovery C" in Apple's documentation).
"""

import asyncio
import ctypes
import socket
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import Executor, ThreadPoolExecutor
from contextlib import contextmanager
from ctypes import POINTER, byref, c_char_p, c_int, c_int32, c_uint16, c_uint32, c_void_p
from functools import partial
from itertools import product
from typing import TypeVar

from verger.errors import LanError
from verger.lan.advertise import START_S, STOP_S, UPDATE_S
from verger.lan.interfaces import Interface
from verger.lan.records import (
    SATURN_TYPE,
    SERVICE_TYPE,
    Advert,
    encode_txt,
    instance_name,
    pack_txt,
    saturn_txt,
)

SYSTEM_LIBRARY = "/usr/lib/libSystem.B.dylib"
LOCAL_ONLY = 0xFFFFFFFF
"""In place of the index of loopback: seen on this machine only."""
T = TypeVar("T")
_ADD = 0x2
_NO_ERROR = 0
_MEANINGS = {
    -65548: "the name is taken",
    -65563: "mDNSResponder does not run",
    -65570: "macOS denies Verger the local network: see Privacy & Security, Local Network",
}

_REPLY = ctypes.CFUNCTYPE(None, c_void_p, c_uint32, c_int32, c_char_p, c_char_p, c_char_p, c_void_p)
"""sdRef, flags, errorCode, name, regtype, domain, context."""


class Library:
    """The five functions of dns_sd.h that are used, with their types."""

    def __init__(self, path: str = SYSTEM_LIBRARY) -> None:
        try:
            library = ctypes.CDLL(path)
            self.register = library.DNSServiceRegister
            self.update_record = library.DNSServiceUpdateRecord
            self.socket_of = library.DNSServiceRefSockFD
            self.process_result = library.DNSServiceProcessResult
            self.deallocate = library.DNSServiceRefDeallocate
        except (OSError, AttributeError) as error:
            raise LanError(f"this system has no DNS-SD: {error}") from error
        strings = (c_char_p, c_char_p, c_char_p, c_char_p)  # Name, type, domain, host.
        where, reply = (c_uint32, c_uint32, *strings, c_uint16), (_REPLY, c_void_p)
        text = (c_uint16, c_char_p)
        self.register.argtypes = (POINTER(c_void_p), *where, *text, *reply)
        self.update_record.argtypes = (c_void_p, c_void_p, c_uint32, *text, c_uint32)
        self.socket_of.argtypes = self.process_result.argtypes = [c_void_p]
        self.deallocate.argtypes, self.deallocate.restype = [c_void_p], None
        self.register.restype = self.update_record.restype = c_int32
        self.socket_of.restype, self.process_result.restype = c_int, c_int32


class Registration:
    """One service on one interface, from its registration until `close`."""

    def __init__(self, library: Library, worker: Executor, type_: str) -> None:
        self.name = ""
        """What the system has named it; empty until it says so, and when the service was lost."""
        self.type = type_
        self._library = library
        self._worker = worker
        self._loop = asyncio.get_running_loop()
        self._reference = c_void_p()
        self._descriptor = -1
        self._failure = ""
        self._is_told = asyncio.Event()
        # The library calls it until the registration is closed: it must live as long.
        self._callback = _REPLY(self._take)

    async def open(self, interface: Interface, name: str, port: int, text: bytes) -> None:
        """Register, and wait until the system says under which name."""
        index = LOCAL_ONLY if interface.is_loopback else interface.index
        strings = (name.encode(), self.type.removesuffix(".local.").encode(), None, None)
        reply = (len(text), text, self._callback, None)
        arguments = (byref(self._reference), 0, index, *strings, socket.htons(port), *reply)
        _check(await self._call(self._library.register, *arguments))
        self._descriptor = self._library.socket_of(self._reference)
        self._listen()
        await self._is_told.wait()
        if self._failure:
            raise LanError(self._failure)

    async def update(self, text: bytes) -> None:
        """Replace the TXT record."""
        arguments = (self._reference, None, 0, len(text), text, 0)
        _check(await self._call(self._library.update_record, *arguments))

    async def close(self) -> None:
        """Withdraw it, once; the system says goodbye. What is under way is waited for first."""
        if self._descriptor >= 0:
            self._loop.remove_reader(self._descriptor)
            self._descriptor = -1
        await asyncio.shield(self._call(self._deallocate))

    def _deallocate(self) -> None:
        reference, self._reference = self._reference, c_void_p()
        if reference:
            self._library.deallocate(reference)

    def _listen(self) -> None:
        if self._descriptor >= 0 and not self._failure:
            self._loop.add_reader(self._descriptor, self._read)

    def _read(self) -> None:
        """The system has said something: the library reads it and calls `_take`."""
        self._loop.remove_reader(self._descriptor)
        reading = self._call(self._library.process_result, self._reference)
        reading.add_done_callback(self._end_reading)

    def _end_reading(self, reading: asyncio.Future[int]) -> None:
        if not reading.cancelled() and (code := reading.result()) != _NO_ERROR:
            self._note(0, code, b"")
        self._listen()

    def _take(self, _: int, flags: int, code: int, name: bytes, *rest: object) -> None:
        """In the worker."""
        self._loop.call_soon_threadsafe(self._note, flags, code, name)

    def _note(self, flags: int, code: int, name: bytes) -> None:
        self.name = name.decode(errors="replace") if flags & _ADD else ""
        self._failure = "" if code == _NO_ERROR else _meaning(code)
        self._is_told.set()

    def _call(self, function: Callable[..., T], *arguments: object) -> asyncio.Future[T]:
        return self._loop.run_in_executor(self._worker, partial(function, *arguments))


class DnsSd:
    """Implements `advertise.Advertiser`: two services on each interface."""

    def __init__(self, interfaces: Sequence[Interface], library_path: str = SYSTEM_LIBRARY) -> None:
        self._interfaces = interfaces
        self._library_path = library_path
        self._worker = ThreadPoolExecutor(1, "dnssd")
        self._registrations: list[Registration] = []

    @property
    def name(self) -> str:
        """As the system has it now; it renames while running where networks are joined."""
        names = [registration.name for registration in self._registrations]
        return names[0] if names and all(names) else ""

    async def start(self, advert: Advert) -> str:
        """The first registration finds the name; all others are asked for under the same."""
        library = Library(self._library_path)
        name = instance_name(advert.name)
        with _responder_in_time("advertised"):
            async with asyncio.timeout(START_S):
                for interface, (type_, text) in product(self._interfaces, _texts(advert).items()):
                    registration = Registration(library, self._worker, type_)
                    self._registrations.append(registration)
                    await registration.open(interface, name, advert.port, text)
                    name = self.name or name
        return name

    async def update(self, advert: Advert) -> None:
        """Replace the TXT records on every interface."""
        texts = _texts(advert)
        with _responder_in_time("updated"):
            async with asyncio.timeout(UPDATE_S):
                for registration in self._registrations:
                    await registration.update(texts[registration.type])

    async def stop(self) -> None:
        """Withdraw all."""
        registrations, self._registrations = self._registrations, []
        with _responder_in_time("withdrawn"):
            async with asyncio.timeout(STOP_S):
                await asyncio.gather(*(registration.close() for registration in registrations))
        self._worker.shutdown(wait=False)


@contextmanager
def _responder_in_time(what: str) -> Iterator[None]:
    try:
        yield
    except TimeoutError:
        raise LanError(f"the server cannot be {what}: mDNSResponder is silent") from None


def _texts(advert: Advert) -> dict[str, bytes]:
    return {
        SERVICE_TYPE: pack_txt(encode_txt(advert)),
        SATURN_TYPE: pack_txt(saturn_txt(advert)),
    }


def _check(code: int) -> None:
    if code != _NO_ERROR:
        raise LanError(_meaning(code))


def _meaning(code: int) -> str:
    return f"{_MEANINGS.get(code, 'DNS-SD refuses')} (error {code})"
