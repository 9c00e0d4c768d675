// Runs a Python file in a real MicroPython (WebAssembly): node micropython.mjs MODULE_DIR FILE...
// Each FILE is "target=source": the source is copied to target in MicroPython's file system; the last target is run.
import fs from "node:fs";
import path from "node:path";
import { pathToFileURL } from "node:url";

const [directory, ...files] = process.argv.slice(2);
const { loadMicroPython } = await import(pathToFileURL(path.join(directory, "micropython.mjs")));
const mp = await loadMicroPython({ heapsize: 8 << 20, stdout: (line) => console.log(line) });
let target;
for (const pair of files) {
  const [to, from] = pair.split("=");
  let folder = "";
  for (const part of path.posix.dirname(to).split("/").filter(Boolean)) {
    folder += "/" + part;
    try { mp.FS.mkdir(folder); } catch { /* is there */ }
  }
  mp.FS.writeFile(to, fs.readFileSync(from));
  target = to;
}
try {
  mp.runPython(`import sys\nsys.path.insert(0, "/")\nexec(open("${target}").read())`);
} catch (error) {
  console.error(error.message);
  process.exit(1);
}
