/* A stand-in for the functions of dns_sd.h that Verger calls. Every call becomes a line of the file
 * $DNS_SD_LOG; $DNS_SD_PLAY says what the responder does:
 *
 *   conflict   the name is taken, and becomes "NAME (2)"
 *   refuse     registering is an error
 *   silent     registering is never answered
 *   deny       the answer to a registration is an error
 *   die        the responder dies as soon as it has answered
 *   slow       registering takes a while
 */
#include <arpa/inet.h>
#include <stdint.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/socket.h>
#include <unistd.h>

typedef struct Service *DNSServiceRef;
typedef void (*DNSServiceRegisterReply)(DNSServiceRef, uint32_t, int32_t, const char *, const char *,
                                        const char *, void *);

struct Service {
    int number, ours, theirs;
    char name[64], type[32];
    DNSServiceRegisterReply reply;
    void *context;
};

static int registered;

static int plays(const char *what) {
    const char *play = getenv("DNS_SD_PLAY");
    return play && strcmp(play, what) == 0;
}

static FILE *begin(const char *call, int number) {
    FILE *log = fopen(getenv("DNS_SD_LOG"), "a");
    fprintf(log, "%s %d", call, number);
    return log;
}

static void end(FILE *log, uint16_t length, const void *text) {
    if (text) fputc(' ', log);
    for (int at = 0; text && at < length; at++) fprintf(log, "%02x", ((const uint8_t *)text)[at]);
    fputc('\n', log);
    fclose(log);
}

int32_t DNSServiceRegister(DNSServiceRef *reference, uint32_t flags, uint32_t interface,
                           const char *name, const char *type, const char *domain, const char *host,
                           uint16_t port, uint16_t length, const void *text,
                           DNSServiceRegisterReply reply, void *context) {
    if (plays("refuse")) return -65537;
    if (plays("slow")) usleep(300000);
    int ends[2];
    if (socketpair(AF_UNIX, SOCK_STREAM, 0, ends)) return -65537;
    struct Service *service = calloc(1, sizeof *service);
    service->number = ++registered;
    service->ours = ends[0];
    service->theirs = ends[1];
    snprintf(service->name, sizeof service->name, "%s%s", name, plays("conflict") ? " (2)" : "");
    snprintf(service->type, sizeof service->type, "%s", type);
    service->reply = reply;
    service->context = context;
    *reference = service;
    FILE *log = begin("register", service->number);
    fprintf(log, " flags=%u interface=%u name=%s type=%s domain=%s host=%s port=%u", flags,
            interface, name, type, domain ? domain : "-", host ? host : "-", ntohs(port));
    end(log, length, text);
    if (!plays("silent") && write(service->theirs, "a", 1) != 1) return -65537;
    return 0;
}

int DNSServiceRefSockFD(DNSServiceRef service) { return service->ours; }

int32_t DNSServiceProcessResult(DNSServiceRef service) {
    char byte;
    if (read(service->ours, &byte, 1) != 1) return -65563;
    end(begin("process", service->number), 0, NULL);
    int32_t code = plays("deny") ? -65570 : 0;
    service->reply(service, code ? 0 : 2, code, service->name, service->type, "local.",
                   service->context);
    if (plays("die")) close(service->theirs);
    return 0;
}

int32_t DNSServiceUpdateRecord(DNSServiceRef service, void *record, uint32_t flags, uint16_t length,
                               const void *text, uint32_t ttl) {
    FILE *log = begin("update", service->number);
    fprintf(log, " record=%s flags=%u ttl=%u", record ? "other" : "-", flags, ttl);
    end(log, length, text);
    return 0;
}

void DNSServiceRefDeallocate(DNSServiceRef service) {
    end(begin("deallocate", service->number), 0, NULL);
    close(service->ours);
    if (!plays("die")) close(service->theirs);
    free(service);
}
