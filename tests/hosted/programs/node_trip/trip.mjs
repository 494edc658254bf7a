// An ordinary Node.js program: the official OpenAI client and the official MCP client. Nothing in it knows of Perdure.
import { randomUUID } from "node:crypto";
import process from "node:process";
import OpenAI from "openai";
import { Client } from "@modelcontextprotocol/sdk/client/index.js";
import { StreamableHTTPClientTransport } from "@modelcontextprotocol/sdk/client/streamableHttp.js";

const model = process.env.MODEL ?? "seq";
const openai = new OpenAI({ timeout: Number(process.env.OPENAI_TIMEOUT_MS ?? 600_000) });
const mcp = new Client({ name: "trip", version: "1.0.0" });
const headers = { Authorization: `Bearer ${process.env.PERDURE_MCP_TOKEN}` };
const url = new URL(process.env.PERDURE_MCP_URL);
await mcp.connect(new StreamableHTTPClientTransport(url, { requestInit: { headers } }));

const { tools } = await mcp.listTools();
const offered = tools.map((tool) => ({
  type: "function",
  function: { name: tool.name, description: tool.description, parameters: tool.inputSchema },
}));
let system = "You book trips.";
if (process.env.NONDET) system += ` Now: ${new Date().toISOString()} session ${randomUUID()} n=${process.pid}`;
const messages = [
  { role: "system", content: system },
  { role: "user", content: "Book a trip to Rome." },
];

async function ask() {
  const request = { model, messages, tools: offered };
  if (!process.env.STREAM) return (await openai.chat.completions.create(request)).choices[0].message;
  return (await openai.chat.completions.stream(request).finalChatCompletion()).choices[0].message;
}

for (;;) {
  const reply = await ask();
  messages.push(reply);
  if (!reply.tool_calls?.length) {
    console.log("FINAL", reply.content);
    break;
  }
  const results = await Promise.all(
    reply.tool_calls.map((call) =>
      mcp.callTool({ name: call.function.name, arguments: JSON.parse(call.function.arguments) }),
    ),
  );
  reply.tool_calls.forEach((call, index) =>
    messages.push({ role: "tool", tool_call_id: call.id, content: results[index].content[0].text }),
  );
}
process.exit(0);
