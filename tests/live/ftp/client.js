// SPDX-License-Identifier: GPL-2.0-or-later
// usage: client.js MODULE HOST PORT - lists a server's files with basic-ftp in MODULE.
"use strict";

const [module_, host, port] = process.argv.slice(2);
const {Client} = require(module_);

async function list() {
  const client = new Client(20000);
  try {
    await client.access({host, port: Number(port)});
    for (const {name} of await client.list()) console.log(name);
  } finally {
    client.close();
  }
}

list().catch(error => {
  console.error(String(error));
  process.exitCode = 1;
});
