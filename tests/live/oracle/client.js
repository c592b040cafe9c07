// SPDX-License-Identifier: GPL-2.0-or-later
// usage: node client.js FOLDER     (the folder of the module oracledb)
// For each line "NAME CONNECT-STRING" of standard input connects to that database, and
// prints {"name": NAME, "error": what the client says}. Several lines run at a time.
"use strict";
const oracledb = require(process.argv[2]);
const readline = require("node:readline");

// Up to 230 bytes of connect data go with the packet CONNECT.
oracledb.program = "client.js";

readline.createInterface({ input: process.stdin }).on("line", async (line) => {
  const [name, connectString] = line.split(" ");
  let error = "";
  try {
    const account = { user: "scott", password: "tiger" };
    await (await oracledb.getConnection({ ...account, connectString })).close();
  } catch (reason) {
    error = reason.message;
  }
  console.log(JSON.stringify({ name, error }));
});
