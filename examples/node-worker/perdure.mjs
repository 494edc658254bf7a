// A worker of Perdure in JavaScript, without packages: the protocol of docs/worker-protocol.md.
//
//   import { agent, step, serve } from './perdure.mjs';
//   agent('greeter', '1', async (run, name) => run.step(greet, name));
//   serve();
//
// What the code of a run does must follow from what it was given: chance and time come from `run.random()` and `run.now()`,
// everything else from durable calls. Every promise that it awaits must be one of a durable call.
import { createHash } from 'node:crypto';
import { connect } from 'node:net';

const PROTOCOL = 1;
const agents = new Map();
const runs = new Map();
let limits = null;
let socket = null;

/** Registers an agent: `code(run, input)` returns its result. */
export function agent(name, version, code) {
  agents.set(name, { version, code });
}

/** Gives a function a policy: `retries` after the first attempt, `backoffMs` before the second (it doubles). */
export function step(code, { name = code.name, retries = 0, backoffMs = 500, backoffMsMax = 60_000 } = {}) {
  return { code, name, retries, backoffMs, backoffMsMax };
}

/** An error that the runtime has told; `code` is stable. */
export class PerdureError extends Error {
  constructor({ code = 'perdure-error', message = '', type = '', facts = {} }) {
    super(message);
    Object.assign(this, { name: 'PerdureError', code, type, facts });
  }
}

/** How the code of a run is told to stop. */
export class Cancelled extends Error {
  constructor(reason) {
    super(reason);
    this.name = 'Cancelled';
  }
}

const send = (frame) => {
  const data = Buffer.from(JSON.stringify(frame));
  const head = Buffer.alloc(4);
  head.writeUInt32BE(data.length);
  socket.write(Buffer.concat([head, data]));
};
const digest = (value) => createHash('sha256').update(JSON.stringify(value)).digest('hex').slice(0, 16);
const milliseconds = (seconds) => (seconds === undefined ? undefined : Math.round(seconds * 1000));

class Run {
  constructor({ run, id, session = null, seq, at_ms: atMs, chance, frontier = 0, patches = [] }) {
    Object.assign(this, { number: run, id, session, seq, atMs, frontier, closed: false });
    this.open = new Map();
    this.done = [];
    this.next = 1;
    this.patches = new Map(patches.map((name) => [name, true]));
    this.seed(chance);
  }

  // -- what an author uses
  step(code, ...args) {
    const made = typeof code === 'function' ? step(code) : code;
    if (!made.name) throw new TypeError('a step needs a name: give a named function');
    const { name, retries, backoffMs, backoffMsMax } = made;
    return this.call(
      { kind: 'step', name, digest: digest(args), retries, backoff_ms: backoffMs, backoff_ms_max: backoffMsMax },
      { code: made.code, args: JSON.stringify(args) },
    );
  }
  act(tool, args = {}) { return this.call({ kind: 'act', name: tool, data: args }); }
  model(name, messages, body = {}) {
    return this.call({ kind: 'model', name, endpoint: 'chat/completions', data: { model: name, messages, ...body } });
  }
  sleep(seconds) { return this.call({ kind: 'sleep', ms: milliseconds(seconds) }); }
  ask(question, { timeout } = {}) { return this.call({ kind: 'ask', data: question, ms: milliseconds(timeout) }); }
  receive(topic, { timeout } = {}) { return this.call({ kind: 'receive', name: topic, ms: milliseconds(timeout) }); }
  send(to, topic, body = null) { return this.call({ kind: 'send', name: topic, to, data: body }); }
  spawn(name, input = null) { return this.call({ kind: 'spawn', name, data: input }); }
  result(child) { return this.call({ kind: 'result', name: child }); }
  now() { return new Date(this.atMs); }
  random() {  // mulberry32: small, and the same on every replay
    this.state = (this.state + 0x6d2b79f5) | 0;
    let mixed = Math.imul(this.state ^ (this.state >>> 15), 1 | this.state);
    mixed = (mixed + Math.imul(mixed ^ (mixed >>> 7), 61 | mixed)) ^ mixed;
    return ((mixed ^ (mixed >>> 14)) >>> 0) / 4294967296;
  }
  patched(name) {
    if (!this.patches.has(name)) {
      this.patches.set(name, this.seq >= this.frontier);
      if (this.patches.get(name)) this.done.push({ t: 'patch', name });
    }
    return this.patches.get(name);
  }

  // -- the protocol
  seed(chance) { this.state = Number((BigInt(chance) >> 16n) & 0xffffffffn) | 0; }
  call(fields, extra = {}) {
    if (this.closed) return new Promise(() => {});  // forgotten: this code never goes on
    const call = this.next++;
    this.done.push({ t: 'call', call, ...fields });
    return new Promise((resolve, reject) => this.open.set(call, { kind: fields.kind, resolve, reject, ...extra }));
  }
  start(code, input) {
    (async () => code(this, input))().then(
      (value) => this.done.push({ t: 'result', value: value ?? null }),
      (error) => this.done.push(
        error instanceof Cancelled ? { t: 'cancelled' } : { t: 'error', error: problem(error, 'agent-failed') },
      ),
    );
    this.settle(this.seq);
  }
  /** Tells what the code did, when nothing of it is ready any more: the callbacks of promises run before this one. */
  settle(seq) {
    return new Promise((resolve) => setImmediate(() => {
      if (!this.closed) send({ t: 'ran', run: this.number, seq, do: this.done.splice(0) });
      resolve();
    }));
  }
  take(event) {
    Object.assign(this, { seq: event.seq, atMs: event.at_ms });
    if (event.t === 'answer') {
      const call = this.open.get(event.call);
      this.open.delete(event.call);
      if (event.error) call?.reject(new PerdureError(event.error));
      else call?.resolve(event.value ?? null);
    } else if (event.t === 'cancel') {
      for (const [call, { reject }] of this.open) {
        this.done.push({ t: 'give-up', call });
        reject(new Cancelled(event.reason));
      }
      this.open.clear();
    } else if (event.t === 'forked') {
      this.id = event.id;
      this.seed(event.chance);
    }
    return this.settle(event.seq);
  }
  async attempt({ call, attempt }) {
    const found = this.open.get(call);
    if (!found) return;
    const told = { t: 'step-end', run: this.number, call, attempt };
    try {
      told.value = (await found.code(...JSON.parse(found.args))) ?? null;
    } catch (error) {
      told.error = problem(error, 'step-failed');
    }
    if (!this.closed) send(told);
  }
}

const problem = (error, code) => ({
  code: error instanceof PerdureError ? error.code : code,
  message: String(error?.message ?? error).slice(0, 4000),
  type: error?.type || error?.name || typeof error,
});

async function take(frame) {
  const run = runs.get(frame.run);
  switch (frame.t) {
    case 'welcome': limits = frame; break;
    case 'ping': send({ t: 'pong', id: frame.id }); break;
    case 'stop': process.exit(0); break;
    case 'start': {
      const made = new Run(frame);
      runs.set(frame.run, made);
      made.queue = Promise.resolve(made.start(agents.get(frame.agent).code, frame.input));
      break;
    }
    case 'step-begin': run?.attempt(frame); break;
    case 'step-cancel': break;  // its answer is not waited for
    case 'drop':
      if (run) run.closed = true;
      runs.delete(frame.run);
      break;
    default:  // an event of a run: one at a time, in order
      if (run) run.queue = run.queue.then(() => run.take(frame));
  }
}

/** Says hello and works until the runtime says stop or is gone. */
export function serve() {
  const { PERDURE_WORKER_SOCKET: path, PERDURE_WORKER_TOKEN: token } = process.env;
  if (!path || !token) throw new Error('this program is started by a runtime: see docs/worker-protocol.md');
  delete process.env.PERDURE_WORKER_TOKEN;
  socket = connect(path, () => send({
    t: 'hello', protocol: PROTOCOL, token, language: 'javascript',
    agents: Object.fromEntries([...agents].map(([name, { version }]) => [name, version])),
  }));
  let data = Buffer.alloc(0);
  socket.on('data', (part) => {
    data = Buffer.concat([data, part]);
    while (data.length >= 4) {
      const end = 4 + data.readUInt32BE(0);
      if (limits && end - 4 > limits.frame_bytes_max) process.exit(70);
      if (data.length < end) break;
      const frame = JSON.parse(data.subarray(4, end));
      data = data.subarray(end);
      take(frame);
    }
  });
  socket.on('close', () => process.exit(70));
  socket.on('error', () => process.exit(70));
}
