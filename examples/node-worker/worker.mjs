// Agents in JavaScript: started by a runtime that names this file in `external(...)`; see desk.py beside it.
import { appendFileSync } from 'node:fs';
import { agent, serve, step } from './perdure.mjs';

async function note(log, line) {
  appendFileSync(log, `${line}\n`);
  return line;
}

let attempts = 0;
const unsteady = step(async function unsteady() {
  attempts += 1;
  if (attempts % 3) throw new RangeError(`attempt ${attempts} fails`);
  return attempts;
}, { retries: 3, backoffMs: 10 });

/** Prices an order, waits, asks a human, and pays. */
agent('node-order', '1', async (run, { log, item }) => {
  await run.step(note, log, 'begun');
  const price = await run.act('price', { item });
  await run.sleep(0.2);
  const draws = [run.random(), run.random()];
  const lines = await Promise.all(['a', 'b', 'c'].map((name) => run.step(note, log, name)));
  const answer = await run.ask(`buy ${item} for ${price}?`, { timeout: 3600 });
  await run.step(note, log, 'answered');
  const message = await run.receive('ship', { timeout: 3600 });
  return { item, price, answer, lines, body: message.body, draws, at: run.now().toISOString() };
});

agent('node-retry', '1', async (run) => run.step(unsteady));

agent('node-fails', '1', async (run, how) => {
  if (how === 'tool') {
    try {
      await run.act('nothing', {});
    } catch (error) {
      return error.code;
    }
  }
  throw new TypeError('no such thing');
});

agent('node-waits', '1', async (run, log) => {
  try {
    await run.sleep(3600);
  } finally {
    await run.step(note, log, 'cleaned up');
  }
});

serve();
