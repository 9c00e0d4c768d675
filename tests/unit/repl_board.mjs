// A board with MicroPython's REPL on stdin and stdout: node repl_board.mjs MODULE_DIR STUB_DIR
// The REPL, raw mode and file system are MicroPython's own (WebAssembly); the files of STUB_DIR stand for the chip.
import fs from "node:fs";
import path from "node:path";
import { pathToFileURL } from "node:url";

const [directory, stubs] = process.argv.slice(2);
const { loadMicroPython } = await import(pathToFileURL(path.join(directory, "micropython.mjs")));
const mp = await loadMicroPython({
  heapsize: 4 << 20,
  linebuffer: false,
  stdout: (bytes) => fs.writeSync(1, bytes),
});
for (const folder of ["/flash", "/lib"]) mp.FS.mkdir(folder);
for (const name of fs.readdirSync(stubs)) mp.FS.writeFile("/lib/" + name, fs.readFileSync(path.join(stubs, name)));
mp.FS.chdir("/flash");
mp.runPython('import sys; sys.path.insert(0, "/lib")\nimport shim'); // before the modules that are frozen here
mp.replInit();
const RAW_PASTE = Buffer.from([0x05, 0x41, 0x01]);
let queue = Promise.resolve();
process.stdin.on("data", (bytes) => {
  if (bytes.equals(RAW_PASTE)) {
    fs.writeSync(1, "R\x00"); // understood, not supported: this build could not read on while it compiles
    return;
  }
  queue = queue.then(async () => {
    for (const byte of bytes) {
      if (await mp.replProcessCharWithAsyncify(byte)) {
        fs.writeSync(1, "MPY: soft reboot\r\n"); // what a board says to Ctrl-D; its file system stays
        mp.replInit();
      }
    }
  });
});
process.stdin.on("end", () => process.exit(0)); // whoever held the port is gone
