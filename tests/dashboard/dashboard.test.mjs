// The dashboard in a real browser, over the real stack. Every page that is opened here must ask nobody else for anything and
// write no error to the console.

import assert from "node:assert/strict";
import fs from "node:fs";
import http from "node:http";
import net from "node:net";
import { after, afterEach, before, test } from "node:test";
import { chromium } from "playwright-core";
import { Stack, freePort, until, users } from "./stack.mjs";

const SPLIT = `
models:
  digits:
    labels: {stable: 1, canary: 2}
    split: {weights: {stable: 90, canary: 10}, sticky: {header: x-user-id}}
`;

const rollout = (baseline, candidate, dwell) => `
models:
  digits:
    canary:
      baseline: ${baseline}
      candidate: ${candidate}
      steps: [20, 50]
      dwell: ${dwell}
      sticky: {header: x-user-id}
      gates: {errors: {at_most: 20}}
`;

let stack, browser;
const opened = [];

before(async () => {
  stack = await Stack.start(SPLIT);
  browser = await chromium.launch({
    executablePath: process.env.CHROMIUM ?? "/usr/bin/chromium",
    // evil.example is a name whose owner makes it lead to this machine.
    args: ["--no-sandbox", "--disable-dev-shm-usage", "--host-resolver-rules=MAP evil.example 127.0.0.1"],
  });
});

after(async () => {
  await browser?.close();
  await stack?.end();
});

async function open(address, options = {}) {
  const page = await browser.newPage({ viewport: { width: 1180, height: 900 }, ...options });
  const seen = { page, faults: [], foreign: [], polls: 0, expectsLoss: false };
  page.on("console", message => message.type() === "error" && seen.faults.push(message.text()));
  page.on("pageerror", error => seen.faults.push(error.message));
  page.on("request", request => {
    const { host, protocol, pathname } = new URL(request.url());
    if (pathname === "/status") seen.polls += 1;
    if (protocol !== "data:" && host !== address) seen.foreign.push(request.url());
  });
  opened.push(seen);
  await page.goto(`http://${address}/`);
  await page.locator("#state").waitFor();
  return seen;
}

afterEach(async () => {
  for (const { page, faults, foreign, expectsLoss } of opened.splice(0)) {
    await page.close();
    assert.deepEqual(foreign, [], "nobody else is asked");
    assert.deepEqual(expectsLoss ? [] : faults, [], "no errors in the console");
  }
});

const phase = async () => (await stack.status()).canaries.digits?.phase;
const text = locator => locator.innerText();

test("shares are shown against declared weights, and where time goes", async () => {
  const { page } = await open(stack.monitor);
  await stack.ask(users(0, 600));
  const row = version => page.locator(`section[aria-label=digits] table tr[data-key="${version}"]`);
  await until("both shares", async () => /9\d(\.\d)?\s%|8\d\.\d\s%/.test(await text(row(1).locator(".got"))) && /\d\s%/.test(await text(row(2).locator(".got"))));
  const { versions } = await stack.status();
  const served = versions.filter(version => version.model === "digits").map(version => version.outcomes.served);
  assert.equal(served[0] + served[1], 600);
  const shown = parseFloat(await text(row(2).locator(".got")));
  assert.ok(shown > 4 && shown < 18, `version 2 has ${shown} %`);
  assert.match(await text(row(1)), /stable/);
  assert.match(await text(row(1)), /of 90\s% declared/);
  assert.match(await text(row(2)), /of 10\s% declared/);
  const stages = page.locator("section[aria-label=digits] .legend").first();
  assert.match(await text(stages), /proxy \d.*queue \d.*run \d/s);
  assert.match(await text(page.locator(".columns")), /%/, "batch sizes");
  const drift = page.locator("section[aria-label=digits] section[aria-label=Drift]");
  await until("rows that were looked at", async () => /version 1, sure of its answers at \d+(\.\d)?\s% on average\s+\d+ rows were looked at/.test(await drift.innerText().catch(() => "")));
  assert.match(await text(page.locator("section[aria-label=Engine]")), /connected[\s\S]*MB[\s\S]*cpu/);
});

test("refusals say why, and text of others stays text", async () => {
  await stack.policy(`${SPLIT}limits: [{name: "a<i>b", key: {header: x-user-id}, rate: 1/m, burst: 2}]\n`);
  const { page } = await open(stack.monitor);
  const statuses = await stack.ask(Array(12).fill("same"));
  const limited = statuses.filter(status => status === 429).length;
  assert.ok(limited >= 10, `${statuses}`);
  assert.ok((await stack.ask([1], "<img src=x onerror=alert(1)>")).every(status => status === 404));
  const refusals = page.getByRole("region", { name: "Requests without an answer" });
  await refusals.getByText("rate limit").waitFor();
  await refusals.getByText("no model `<img src=x onerror=alert(1)>`").waitFor();
  assert.match(await text(refusals), /limit `a<i>b` is exhausted/);
  const row = page.getByRole("region", { name: "Limits" }).locator("tbody tr");
  await until("the limit's count", async () => (await text(row)).includes(String(limited)));
  assert.match(await text(row), /a<i>b/);
  await until("what is spent", async () => /100\s%[\s\S]*at the limit/.test(await text(row)));
  assert.equal(await page.locator("img, i").count(), 0);
});

test("a version that only a rule names and that is missing is shown with what follows", async () => {
  const rules = "    rules: [{when: {header: x-cohort, equals: beta}, use: 7}]\n";
  await stack.policy(`${SPLIT}${rules}`);
  const { page } = await open(stack.monitor);
  const row = page.locator('section[aria-label=digits] table tr[data-key="7"]');
  await row.getByText("missing").waitFor();
  assert.match(await text(row), /whom a rule sends there is refused/);
  assert.doesNotMatch(await text(row), /declared/);
  assert.match(await text(page.getByRole("list", { name: "Needs attention" })), /digits, version 7, is named by the policy and missing/);
  await stack.policy(SPLIT);
  await until("the row to be gone", async () => (await row.count()) === 0);
});

test("a version that was unloaded is shown as that, and needs attention only where the policy sends it requests", async () => {
  await stack.order("unload", 2);
  try {
    const { page } = await open(stack.monitor);
    const row = page.locator('section[aria-label=digits] table tr[data-key="2"]');
    const says = page.getByRole("list", { name: "Needs attention" });
    await row.getByText("✕ unloaded").waitFor();
    assert.match(await text(says), /digits, version 2, is not loaded\. it was unloaded/);
    await stack.policy("models: {digits: {split: {weights: {1: 1}}}}\n");
    await row.getByText("○ unloaded").waitFor();
    await until("nothing to need attention", async () => !(await says.isVisible()));
    assert.equal(await text(page.getByRole("region", { name: "digits", exact: true }).locator("> details > summary > span").first()), "● 2 versions");
  } finally {
    await stack.order("load", 2);
    await stack.policy(SPLIT);
  }
});

test("an open breaker is shown where its version stands and among what needs attention, until it is closed", async () => {
  const failing = "models: {digits: {labels: {stable: 1}, split: {weights: {3: 100}}, breaker: {failures: 3, open_for: 2s}}}\n";
  await stack.policy(failing);
  const { page } = await open(stack.monitor);
  const row = page.locator('section[aria-label=digits] table tr[data-key="3"]');
  const says = page.getByRole("list", { name: "Needs attention" });
  await row.getByText("ready").waitFor();
  assert.equal(await says.getByText("keeps failing").count(), 0);
  const statuses = await stack.ask(users(0, 40)); // digits, of which this version knows nothing
  assert.ok(statuses.includes(500) && statuses.includes(503), `${statuses}`);
  await row.getByText("✕ breaker open").waitFor();
  await row.getByText("next try").waitFor();
  await says.getByText("digits, version 3, keeps failing.").waitFor();
  assert.match(await text(says), /Its breaker lets nothing through; next try (in|with)/);
  const blank = JSON.stringify({ inputs: [{ name: "pixels", shape: [1, 64], datatype: "FP32", data: Array(64).fill(0) }] });
  await until("a probe that succeeds", async () => (await fetch(`http://${stack.http}/v2/models/digits/infer`, { method: "POST", body: blank })).ok);
  await until("a closed breaker", async () => (await stack.status()).versions.find(version => version.version === 3).breaker.state === "passing");
  await row.getByText("● ready").waitFor();
  assert.doesNotMatch(await text(row), /breaker|next try/);
  await until("nothing to be wrong", async () => (await says.getByText("digits, version 3").count()) === 0);
  await stack.policy(SPLIT);
});

test("a version whose server cannot be reached says where that is and why, though another version answers", async () => {
  const gone = `127.0.0.1:${await freePort()}`;
  const breaker = "breaker: {failures: 3, open_for: 1h, max_open_for: 1h, fallback: {version: 1}}";
  await stack.policy(`models: {digits: {remote: {9: {url: 'http://${gone}/'}}, split: {weights: {9: 1}}, ${breaker}}}\n`);
  const { page } = await open(stack.monitor);
  const row = page.locator('section[aria-label=digits] table tr[data-key="9"]');
  assert.deepEqual(await stack.ask(users(0, 1)), [200]);
  const away = new RegExp(`${gone}.*, which could not be reached \\d+ s ago: .*refused`, "i");
  await until("the reason", async () => away.test(await text(row)));
  assert.ok((await stack.ask(users(1, 20))).every(status => status === 200));
  await row.getByText("✕ breaker open").waitFor();
  assert.match(await text(row), away);
  await stack.policy(SPLIT);
});

test("a faulty policy file is said to be, with the place", async () => {
  const { page } = await open(stack.monitor);
  const file = `${stack.folder}/policies.yaml`;
  const good = fs.readFileSync(file);
  fs.writeFileSync(file, "models:\n  digits:\n    split: {weights: {nobody: 1}}\n");
  const says = page.getByRole("list", { name: "Needs attention" });
  await says.getByText("The policy file is not in force.").waitFor();
  assert.match(await text(says), /nobody/);
  fs.writeFileSync(file, good);
  await until("it to be in force again", async () => !(await says.isVisible()));
});

test("a canary advances with its evidence, and a broken one is rolled back", async () => {
  await stack.policy(rollout(1, 2, "1s"));
  const { page } = await open(stack.monitor);
  const shown = page.locator("[data-phase]");
  let asked = 1000;
  const askUntil = word => until(word, async () => {
    await stack.ask(users(asked, (asked += 100)));
    return (await shown.getAttribute("data-phase").catch(() => null)) === word;
  });
  await askUntil("promoted");
  assert.match(await text(page.locator(".verdicts")), /every gate has passed/);
  assert.match(await text(page.locator(".steps")), /20\s% ✓ passed[\s\S]*50\s% ✓ passed[\s\S]*all ✓ passed/);
  const chart = page.getByRole("img", { name: /Evidence of gate errors/ });
  assert.ok(await chart.isVisible());
  await stack.policy(rollout(2, 3, "1h"));
  await askUntil("rolled_back");
  await page.getByText("digits: version 3 was rolled back.").waitFor();
  assert.match(await text(page.locator(".verdicts")), /roll back/);
  assert.match(await text(page.locator(".steps")), /20\s% ✕ rolled back/);
  const history = (await stack.status()).canaries.digits.history;
  assert.equal(history.marks.at(-1).verdict, "roll_back");
  // Who comes afterwards sees how it came to that.
  const later = await open(stack.monitor);
  await later.page.getByRole("img", { name: /that it is worse: 100\s% reached/ }).waitFor();
});

test("buttons work by keyboard alone, only at the admin port, and ask first", async () => {
  await stack.policy(SPLIT); // takes back what was promoted before
  await stack.policy(rollout(1, 2, "1h"));
  const watcher = await open(stack.monitor);
  await watcher.page.getByText("Buttons to pause, advance, promote or abort are at").waitFor();
  assert.equal(await watcher.page.locator("button[data-action]").count(), 0);
  assert.equal(await watcher.page.getByRole("link", { name: stack.admin }).getAttribute("href"), `http://${stack.admin}/`);
  const { page } = await open(stack.admin);
  const focused = () => page.evaluate(() => document.activeElement.textContent);
  const tabTo = name => until(name, async () => {
    await page.keyboard.press("Tab");
    return (await focused()) === name;
  });
  await page.getByRole("button", { name: "Pause" }).waitFor();
  await tabTo("Pause");
  await page.keyboard.press("Enter");
  await page.getByRole("dialog", { name: "Pause: version 2 of digits?" }).waitFor();
  await page.keyboard.press("Escape");
  assert.equal(await phase(), "running", "who thinks better of it has done nothing");
  assert.equal(await focused(), "Pause", "and is where they were");
  await page.waitForTimeout(1200); // a poll must not take the focus away
  assert.equal(await focused(), "Pause");
  await page.keyboard.press("Enter");
  await page.keyboard.type("lunch & <b>coffee</b>");
  await page.keyboard.press("Enter");
  await page.getByText("is paused.").waitFor();
  await page.waitForFunction(() => document.activeElement.dataset.action !== undefined); // though that button is gone
  assert.match((await stack.status()).canaries.digits.verdicts.at(-1).why, /paused by a person: lunch & <b>coffee<\/b>/);
  for (const [button, title, then] of [["Resume", "Resume", "running"], ["Advance", "Advance", "running"], ["Promote", "Promote", "promoted"], ["Abort", "Abort", "rolled_back"], ["Begin again", "Resume", "running"]]) {
    await page.getByRole("button", { name: button, exact: true }).click();
    await page.getByRole("dialog").getByRole("button", { name: title, exact: true }).click();
    await page.locator(`[data-phase=${then}]`).waitFor();
    assert.equal(await phase(), then);
    if (button !== "Advance") continue;
    await page.getByText("step 2 of 2").waitFor();
    assert.match(await text(page.locator(".steps")), /20\s% let go[\s\S]*50\s% ● now/, "it has not passed");
  }
});

test("whoever has no mouse stays at the rollout, though the page has just been asking how it stands", async () => {
  const { page } = await open(stack.admin);
  await page.getByRole("button", { name: "Pause" }).waitFor();
  let release;
  const held = new Promise(resolve => { release = resolve; });
  const before = page.waitForRequest("**/status");
  await page.route("**/status", async route => {
    const response = await route.fetch();
    await held;
    await route.fulfill({ response });
  });
  await before;
  await page.waitForTimeout(300); // that it is still running is on its way to the page
  await page.getByRole("button", { name: "Pause" }).click();
  const done = page.waitForResponse("**/pause?**");
  await page.keyboard.press("Enter");
  await done;
  release();
  await page.waitForFunction(() => document.activeElement.textContent === "Resume");
  await page.unroute("**/status");
  await page.keyboard.press("Enter");
  await page.keyboard.press("Enter");
  await page.locator("[data-phase=running]").waitFor();
});

test("who was shown one step and takes their time lets none go that came meanwhile", async () => {
  const slow = await open(stack.admin);
  const other = await open(stack.admin);
  const { page } = slow;
  const dialog = page.getByRole("dialog");
  await page.getByRole("button", { name: "Advance" }).click();
  await dialog.getByText("The candidate gets the next step's share now").waitFor();
  await other.page.getByRole("button", { name: "Advance" }).click();
  await other.page.getByRole("dialog").getByRole("button", { name: "Advance" }).click();
  await page.getByText("step 2 of 2").waitFor();
  slow.expectsLoss = true; // the browser itself tells the console of answers that refuse
  await dialog.getByRole("button", { name: "Advance" }).click();
  await dialog.getByText("cannot advance: the rollout is in step 2, and not in step 1").waitFor();
  assert.equal((await stack.status()).canaries.digits.step, 2);
  await dialog.getByRole("button", { name: "Cancel" }).click();
  // Whoever looks again may mean that one. The others find it as it was.
  for (const [button, then] of [["Advance", "promoted"], ["Abort", "rolled_back"], ["Begin again", "running"]]) {
    await other.page.getByRole("button", { name: button, exact: true }).click();
    await other.page.getByRole("dialog").locator("#ask-do").click();
    await other.page.locator(`[data-phase=${then}]`).waitFor();
  }
});

test("no page of anybody else can press the buttons, whatever its name leads to", async () => {
  const port = stack.admin.split(":")[1];
  const elsewhere = http.createServer((_, response) => response.setHeader("content-type", "text/html").end("<p>hello")).listen(0, "127.0.0.1");
  await new Promise(resolve => elsewhere.once("listening", resolve));
  const page = await browser.newPage();
  const order = `/canaries/digits/abort?reason=csrf`;
  try {
    for (const target of [`http://127.0.0.1:${port}`, `http://localhost:${port}`]) {
      await page.goto(`http://127.0.0.1:${elsewhere.address().port}/`);
      // As a script that does not need the answer, as one that does, and as a form.
      await page.evaluate(url => fetch(url, { method: "POST", mode: "no-cors" }), target + order);
      const refused = await page.evaluate(url => fetch(url, { method: "POST", headers: { "x-penstock-page": "1" } }).then(() => "", error => error.name), target + order);
      assert.equal(refused, "TypeError", "the browser asks first, and is told no");
      assert.equal(await page.evaluate(url => fetch(url).then(() => "", error => error.name), `${target}/policy`), "TypeError", "nothing can be read");
      await Promise.all([page.waitForNavigation(), page.evaluate(url => {
        const form = document.body.appendChild(Object.assign(document.createElement("form"), { method: "POST", action: url }));
        form.submit();
      }, target + order)]);
      assert.match(await page.innerText("body"), /error/);
    }
    // Its own name, which now leads to us: same origin as far as the browser knows.
    const answer = await page.goto(`http://evil.example:${port}/`);
    assert.equal(answer.status(), 403);
    const rebound = await page.evaluate(url => fetch(url, { method: "POST", headers: { "x-penstock-page": "1" } }).then(answer => answer.status), order);
    assert.equal(rebound, 403);
    assert.equal(await page.evaluate(() => fetch("/policy").then(answer => answer.status)), 403);
    // In a frame, a person could be led to press them.
    await page.goto(`http://127.0.0.1:${elsewhere.address().port}/`);
    await page.evaluate(url => document.body.appendChild(Object.assign(document.createElement("iframe"), { src: url })), `http://127.0.0.1:${port}/`);
    await page.waitForTimeout(500);
    assert.equal(await page.frames().at(-1).locator("#page").count().catch(() => 0), 0);
  } finally {
    await page.close();
    elsewhere.close();
  }
  assert.equal(await phase(), "running");
});

test("what is done and not on the disk yet is said to be, and the dialog stays for who is to read it", async () => {
  const { page } = await open(stack.admin);
  const why = "the disk takes its time";
  await page.route("**/canaries/**", async route => {
    const response = await route.fetch();
    await route.fulfill({ response, status: 202, headers: { ...response.headers(), "x-penstock-not-saved": why } });
  });
  const dialog = page.getByRole("dialog");
  await page.getByRole("button", { name: "Pause" }).click();
  await dialog.getByRole("button", { name: "Pause", exact: true }).click();
  await dialog.getByText(`Done; but ${why}.`).waitFor();
  assert.equal(await phase(), "paused");
  await page.getByText("is paused.").waitFor();
  await dialog.getByRole("button", { name: "Cancel" }).click();
  assert.ok(!(await dialog.isVisible()));
  await page.unroute("**/canaries/**");
  await page.getByRole("button", { name: "Resume" }).click();
  await dialog.getByRole("button", { name: "Resume", exact: true }).click();
  await page.locator("[data-phase=running]").waitFor();
  assert.ok(!(await dialog.isVisible()), "what is saved needs no more words");
});

/** Texts whose contrast with what is behind them is below 4.5 (WCAG 1.4.3). */
const faint = () => {
  const channels = colour => colour.match(/[\d.]+/g).map(Number);
  const light = colour => {
    const [r, g, b] = channels(colour).slice(0, 3).map(value => (value / 255 <= 0.04045 ? value / 255 / 12.92 : ((value / 255 + 0.055) / 1.055) ** 2.4));
    return 0.2126 * r + 0.7152 * g + 0.0722 * b;
  };
  const behind = element => {
    for (let at = element; at; at = at.parentElement) {
      const { backgroundColor } = getComputedStyle(at);
      if ((channels(backgroundColor)[3] ?? 1) > 0.5) return backgroundColor;
    }
    return "rgb(255, 255, 255)";
  };
  const found = [];
  const walker = document.createTreeWalker(document.getElementById("page"), NodeFilter.SHOW_TEXT);
  for (let node = walker.nextNode(); node; node = walker.nextNode()) {
    const element = node.parentElement;
    if (!node.data.trim() || !element.getClientRects().length || element.closest("[aria-hidden]")) continue;
    const style = getComputedStyle(element);
    const [one, other] = [light(element.closest("svg") ? style.fill : style.color), light(behind(element))];
    const contrast = (Math.max(one, other) + 0.05) / (Math.min(one, other) + 0.05);
    if (contrast < 4.5) found.push(`${node.data.trim()}: ${contrast.toFixed(2)}`);
  }
  return found;
};

test("it can be read in light and dark, and on a phone without scrolling sideways", async () => {
  await stack.policy(rollout(2, 3, "1h"));
  await stack.ask(users(0, 200));
  for (const colorScheme of ["light", "dark"]) {
    const { page } = await open(stack.admin, { colorScheme, reducedMotion: "reduce" });
    await page.locator("svg.chart").waitFor();
    assert.deepEqual(await page.evaluate(faint), [], colorScheme);
    const ground = await page.evaluate(() => getComputedStyle(document.body).backgroundColor);
    assert.equal(parseInt(ground.match(/\d+/)[0]) < 60, colorScheme === "dark", ground);
    assert.equal(await page.evaluate(() => getComputedStyle(document.querySelector(".fill")).transitionDuration), "0s", "nothing moves for who asks for that");
    if (process.env.SCREENSHOTS) await page.screenshot({ path: `${process.env.SCREENSHOTS}/${colorScheme}.png`, fullPage: true });
    await page.setViewportSize({ width: 360, height: 740 });
    await page.waitForTimeout(300);
    const sideways = await page.evaluate(() => [...document.querySelectorAll("#page *")].filter(element => element.getBoundingClientRect().right > 361 && !element.closest(".hidden, thead")).map(element => element.outerHTML.slice(0, 80)));
    assert.deepEqual([await page.evaluate(() => document.documentElement.scrollWidth), sideways], [360, []]);
    if (process.env.SCREENSHOTS) await page.screenshot({ path: `${process.env.SCREENSHOTS}/${colorScheme}-phone.png`, fullPage: true });
  }
});

test("everything has a role and a name", async () => {
  const { page } = await open(stack.admin);
  await page.locator("svg.chart").waitFor();
  assert.equal(await page.getByRole("heading", { level: 1 }).count(), 1);
  for (const name of ["digits", "Requests without an answer", "Limits", "Engine", "Policy"]) {
    assert.equal(await page.getByRole("region", { name, exact: true }).count(), 1, name);
  }
  assert.ok(await page.getByRole("meter", { name: "Memory" }).isVisible());
  assert.ok((await page.getByRole("table", { name: "Versions" }).getByRole("columnheader").count()) >= 6);
  assert.equal(await page.locator("[aria-current=step]").count(), 1);
  const nameless = await page.evaluate(() => [...document.querySelectorAll("#page :is(button, a, input)")].filter(element => !element.textContent.trim() && !element.labels?.length).length);
  assert.equal(nameless, 0);
});

test("of many models each is a line that unfolds, and the one with a rollout is unfolded", async () => {
  const others = Array.from({ length: 20 }, (_, at) => `other-${at + 10}`);
  await stack.policy(rollout(2, 3, "1h") + others.map(name => `  ${name}: {deadline: 1s}\n`).join(""));
  const { page } = await open(stack.admin);
  const details = name => page.getByRole("region", { name, exact: true }).locator("> details");
  const isOpen = name => details(name).evaluate(element => element.open);
  await until("all of them", async () => (await page.locator(".model").count()) === 21);
  assert.deepEqual([await isOpen("digits"), await isOpen("other-10")], [true, false]);
  assert.ok((await details("other-10").boundingBox()).height < 60, "it is a line");
  await details("other-10").locator("> summary").focus();
  await page.keyboard.press("Enter");
  await details("digits").locator("> summary").focus();
  await page.keyboard.press("Enter");
  await page.waitForTimeout(1200); // a poll must not undo it
  assert.deepEqual([await isOpen("digits"), await isOpen("other-10")], [false, true]);
  await page.setViewportSize({ width: 360, height: 740 });
  await page.waitForTimeout(300);
  assert.equal(await page.evaluate(() => document.documentElement.scrollWidth), 360);
  await stack.policy(rollout(2, 3, "1h")); // nobody is ready for models that are not there
});

test("a hidden tab asks nothing, and goes on when it is looked at", async () => {
  const seen = await open(stack.monitor);
  const hide = hidden => seen.page.evaluate(value => {
    Object.defineProperty(document, "hidden", { value, configurable: true });
    document.dispatchEvent(new Event("visibilitychange"));
  }, hidden);
  await until("a second poll", () => seen.polls >= 2);
  await hide(true);
  await seen.page.waitForTimeout(300); // one may be under way
  const polls = seen.polls;
  await seen.page.waitForTimeout(2500);
  assert.equal(seen.polls, polls);
  await hide(false);
  await until("another poll", () => seen.polls > polls);
});

test("browsers that go away in the middle leave nothing behind", async () => {
  const files = await until("a quiet process", async () => {
    const now = stack.files();
    await new Promise(resolve => setTimeout(resolve, 500));
    return stack.files() === now && now;
  });
  const [host, port] = stack.monitor.split(":");
  for (let at = 0; at < 200; at++) {
    const socket = net.connect(Number(port), host);
    await new Promise(resolve => socket.once("connect", resolve));
    socket.write(at % 2 ? "GET /status HTTP/1.1\r\nHost: a\r\n\r\n" : "GET /status HTT");
    socket.resetAndDestroy();
  }
  const pages = await Promise.all(Array.from({ length: 3 }, () => browser.newPage()));
  for (const page of pages) {
    page.goto(`http://${stack.monitor}/`).catch(() => {}); // it is closed meanwhile
    await page.waitForTimeout(20);
    await page.close();
  }
  await until("as few open files as before", () => stack.files() <= files + 2);
  assert.equal((await stack.status()).traffic.in_flight, 0);
});

test("a process that is away is said to be, and the page recovers", async () => {
  const seen = await open(stack.monitor);
  seen.expectsLoss = true; // the browser itself tells the console of connections that are refused
  await stack.stop();
  await seen.page.getByText("Penstock does not answer.").waitFor();
  assert.equal(await seen.page.locator("#state").innerText(), "● not answering");
  assert.ok(await seen.page.getByRole("region", { name: "digits", exact: true }).isVisible(), "what was known is still there");
  await stack.launch();
  await until("it to be back", async () => (await seen.page.locator("#state").innerText()) === "● ready");
  assert.equal(await seen.page.getByText("Penstock does not answer.").count(), 0);
});
