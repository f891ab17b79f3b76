// Starts the real stack for the tests of the dashboard: the binaries that cargo built, with the demo's models, on free ports.
// Decides nothing else.

import { spawn } from "node:child_process";
import fs from "node:fs";
import net from "node:net";
import os from "node:os";
import path from "node:path";
import { fileURLToPath } from "node:url";

const CHECKOUT = path.resolve(path.dirname(fileURLToPath(import.meta.url)), "../..");
const BINARY = path.join(CHECKOUT, process.env.CARGO_TARGET_DIR ?? "target", "debug", "penstock");
const DEMO = path.join(CHECKOUT, "configs/demo");
const DIGIT = fs.readFileSync(path.join(DEMO, "requests/digit-7.json"));

/** Of this machine, where nobody listens. */
export const freePort = () => new Promise(resolve => {
  const server = net.createServer().listen(0, "127.0.0.1", () => {
    const { port } = server.address();
    server.close(() => resolve(port));
  });
});

/** Looks until something holds. */
export async function until(what, holds, ms = 60_000) {
  const deadline = Date.now() + ms;
  for (;;) {
    const found = await holds();
    if (found) return found;
    if (Date.now() > deadline) throw new Error(`${what} did not come within ${ms} ms`);
    await new Promise(resolve => setTimeout(resolve, 50));
  }
}

export class Stack {
  /** With these versions of digits; `broken` is one that fails on real digits. */
  static async start(policies, versions = { 1: "models/digits/1", 2: "models/digits/2", 3: "broken" }) {
    const stack = new Stack();
    stack.folder = fs.mkdtempSync(path.join(os.tmpdir(), "penstock-dashboard-"));
    for (const [version, from] of Object.entries(versions)) {
      fs.cpSync(path.join(DEMO, from), path.join(stack.folder, "models/digits", version), { recursive: true });
    }
    const ports = await Promise.all([freePort(), freePort(), freePort()]);
    [stack.http, stack.monitor, stack.admin] = ports.map(port => `127.0.0.1:${port}`);
    fs.writeFileSync(path.join(stack.folder, "policies.yaml"), policies);
    fs.writeFileSync(path.join(stack.folder, "penstock.yaml"), [
      `listen: {http: '${stack.http}', grpc: null, monitor: '${stack.monitor}', admin: '${stack.admin}'}`,
      "policies: policies.yaml",
      `engine: {models: models, socket: '${stack.folder}/engine.sock', lanes: 2, control: true}`,
    ].join("\n"));
    await stack.launch();
    return stack;
  }

  async launch() {
    const log = fs.openSync(path.join(this.folder, "log"), "a");
    this.process = spawn(BINARY, ["serve", "--config", path.join(this.folder, "penstock.yaml")], { stdio: ["ignore", log, log] });
    this.ended = new Promise(resolve => this.process.once("exit", resolve));
    await until("a ready penstock", async () => {
      if (this.process.exitCode !== null) throw new Error(fs.readFileSync(path.join(this.folder, "log"), "utf8"));
      return (await fetch(`http://${this.http}/v2/health/ready`).catch(() => null))?.ok;
    });
  }

  async stop() {
    this.process.kill("SIGTERM");
    return this.ended;
  }

  async end() {
    await this.stop();
    fs.rmSync(this.folder, { recursive: true });
  }

  async status() {
    return (await fetch(`http://${this.monitor}/status`)).json();
  }

  /** Another policy, once it is in force. */
  async policy(text) {
    const { generation } = (await this.status()).policy;
    fs.writeFileSync(path.join(this.folder, "policies.yaml"), text);
    await until("the next generation", async () => (await this.status()).policy.generation > generation);
  }

  /** Has a version loaded or unloaded. */
  async order(word, version, model = "digits") {
    const answer = await fetch(`http://${this.http}/v2/repository/models/${model}/versions/${version}/${word}`, { method: "POST" });
    if (!answer.ok) throw new Error(await answer.text());
  }

  /** As so many users ask, each once; the statuses of the answers. */
  async ask(users, model = "digits") {
    const statuses = [];
    const next = users[Symbol.iterator]();
    const worker = async () => {
      for (let user = next.next(); !user.done; user = next.next()) {
        const headers = { "x-user-id": `user-${user.value}` };
        const answer = await fetch(`http://${this.http}/v2/models/${encodeURIComponent(model)}/infer`, { method: "POST", headers, body: DIGIT });
        await answer.arrayBuffer();
        statuses.push(answer.status);
      }
    };
    await Promise.all(Array.from({ length: 8 }, worker));
    return statuses;
  }

  /** Open files of the process. */
  files() {
    return fs.readdirSync(`/proc/${this.process.pid}/fd`).length;
  }
}

/** From the first number, before the last. */
export const users = (from, to) => Array.from({ length: to - from }, (_, at) => from + at);
