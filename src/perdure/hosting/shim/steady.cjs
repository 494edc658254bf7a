// Makes chance and the time of day of a Node.js program the same on every attempt. Opt-in; see sitecustomize.py beside it.
"use strict";
const crypto = require("node:crypto");
const seed = process.env.PERDURE_SEED || "";
if (seed) {
  const hash = crypto.createHash;
  let drawn = 0, now = Number(process.env.PERDURE_SEED_MS || 0);
  const bytes = (size) => {
    const parts = [];
    for (let found = 0; found < size; found += 32) parts.push(hash("sha256").update(`${seed}:${drawn++}`).digest());
    return Buffer.concat(parts).subarray(0, size);
  };
  const look = () => ++now;
  Math.random = () => bytes(6).readUIntBE(0, 6) / 2 ** 48;
  const uuid = () => {
    const raw = bytes(16);
    raw[6] = (raw[6] & 0x0f) | 0x40;
    raw[8] = (raw[8] & 0x3f) | 0x80;
    return raw.toString("hex").replace(/^(.{8})(.{4})(.{4})(.{4})(.{12})$/, "$1-$2-$3-$4-$5");
  };
  const fill = (array) => {
    bytes(array.byteLength).copy(Buffer.from(array.buffer, array.byteOffset, array.byteLength));
    return array;
  };
  crypto.randomUUID = uuid;
  crypto.randomBytes = (size, done) => (done ? void process.nextTick(done, null, bytes(size)) : bytes(size));
  globalThis.crypto.randomUUID = uuid;
  globalThis.crypto.getRandomValues = fill;
  const Real = Date;
  class Steady extends Real {
    constructor(...given) {
      if (given.length) super(...given);
      else super(look());
    }
    static now() {
      return look();
    }
  }
  globalThis.Date = new Proxy(Steady, { apply: () => new Steady().toString() });
}
