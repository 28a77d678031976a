// Browses with bonjour-service, which is not ours: node browse.cjs FOLDER ADDRESS TYPE
// FOLDER is where it is installed, ADDRESS the interface's own. Prints one JSON object for each
// service that comes (up), changes (txt-update) or says goodbye (down); ends with standard input.
const [folder, address, type] = process.argv.slice(2);
const { Bonjour } = require(`${folder}/node_modules/bonjour-service`);

// Bound to an address of its own it would not hear what is sent to all.
const bonjour = new Bonjour({ interface: address, bind: "0.0.0.0" });
const browser = bonjour.find({ type });
for (const event of ["up", "txt-update", "down"]) {
  browser.on(event, ({ name, host, port, addresses, txt }) =>
    console.log(JSON.stringify({ event, name, host, port, addresses, txt })),
  );
}
process.stdin.on("end", () => process.exit()).resume();
console.log(JSON.stringify({ event: "listening" }));
