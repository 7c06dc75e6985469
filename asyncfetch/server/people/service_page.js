"use strict";
(() => {
  const base = document.body.dataset.base;
  const said = document.getElementById("said");
  const pause = document.getElementById("pause");
  const SECONDS = 1000;
  let admin = "";
  let line = null; // what ends the present connection
  let quiet = 0;

  document.documentElement.classList.add("live");

  // What is said is read out, so it is little: the outcome of a click, the end of a job, a lost connection.
  function say(text, lasting) {
    clearTimeout(quiet);
    said.textContent = text;
    if (!lasting) quiet = setTimeout(() => { said.textContent = ""; }, 8 * SECONDS);
  }

  // Make `now` what `next` is, and leave alone what is the same, so that focus and selection stay.
  function morph(now, next) {
    if (now.nodeType !== next.nodeType || now.nodeName !== next.nodeName || now.id !== next.id) {
      now.replaceWith(next);
      return;
    }
    if (now.nodeType !== Node.ELEMENT_NODE) {
      if (now.data !== next.data) now.data = next.data;
      return;
    }
    for (const { name } of [...now.attributes]) if (!next.hasAttribute(name)) now.removeAttribute(name);
    for (const { name, value } of next.attributes) if (now.getAttribute(name) !== value) now.setAttribute(name, value);
    morphChildren(now, next);
  }

  function morphChildren(now, next) {
    const staying = new Set([...next.children].map((child) => child.id));
    for (const child of [...now.children]) if (child.id && !staying.has(child.id)) child.remove();
    const known = new Map([...now.children].filter((child) => child.id).map((child) => [child.id, child]));
    let at = now.firstChild;
    for (const wanted of [...next.childNodes]) {
      const match = known.get(wanted.id);
      if (match && match !== at) now.insertBefore(match, at);
      const here = match || (at && !(at.id && at.id !== wanted.id) ? at : null);
      if (!here) {
        now.insertBefore(wanted, at);
        continue;
      }
      at = here.nextSibling;
      morph(here, wanted);
    }
    while (at) {
      const following = at.nextSibling;
      at.remove();
      at = following;
    }
  }

  const jobStates = () =>
    new Map([...document.querySelectorAll("[data-state]")].map((job) => [job.id, job.dataset.state]));

  function show(parts) {
    const focused = document.activeElement;
    const section = focused && focused.closest("section");
    const before = jobStates();
    for (const [id, html] of Object.entries(parts)) {
      if (id === document.body.dataset.stays) continue;
      const now = document.getElementById(id);
      const next = now.cloneNode(false);
      next.innerHTML = html;
      morphChildren(now, next);
    }
    for (const [id, state] of jobStates()) {
      const job = document.getElementById(id);
      const over = ["done", "failed", "waits for a token"].includes(state);
      if (over && before.has(id) && before.get(id) !== state) say(`${job.dataset.name}: ${state}`);
    }
    if (focused && !focused.isConnected && section) {
      const title = section.querySelector("h2");
      if (title) title.focus();
    }
  }

  function headers(more) {
    return { ...more, ...(admin ? { Authorization: `Bearer ${admin}` } : {}) };
  }

  async function listen(signal) {
    const answer = await fetch(`${base}events?view=page`, { headers: headers(), signal, cache: "no-store" });
    if (!answer.ok) throw new Error(`${answer.status}`);
    if (said.dataset.lost) say("Connected again.");
    delete said.dataset.lost;
    const reader = answer.body.pipeThrough(new TextDecoderStream()).getReader();
    for (let rest = ""; ;) {
      const { value, done } = await reader.read();
      if (done) return;
      const events = (rest + value).split("\n\n");
      rest = events.pop();
      const last = events.filter((event) => event.startsWith("event: page\n")).pop(); // older ones are of no use
      if (last) show(JSON.parse(last.slice(last.indexOf("data: ") + 6)));
    }
  }

  const awake = () => !document.hidden && pause.getAttribute("aria-pressed") === "false";

  async function watch() {
    for (;;) {
      if (awake()) {
        line = new AbortController();
        const mine = line;
        try {
          await listen(mine.signal);
        } catch {
          // told below
        }
        if (mine.signal.aborted) continue;
        if (!said.dataset.lost) say("The connection is lost. It is tried again.", true);
        said.dataset.lost = "yes";
      }
      await new Promise((resolve) => {
        const timer = setTimeout(resolve, 3 * SECONDS);
        document.addEventListener("wake", () => { clearTimeout(timer); resolve(); }, { once: true });
      });
    }
  }

  function again() {
    if (line) line.abort();
    document.dispatchEvent(new Event("wake"));
  }

  async function send(method, path, body, done, more) {
    const json = body === undefined ? {} : { "Content-Type": "application/json" };
    try {
      const answer = await fetch(base + path, { method, body, headers: headers({ ...json, ...more }) });
      if (answer.ok) {
        say(done);
        return true;
      }
      const told = await answer.json().catch(() => ({}));
      say(told.error || `The server answered ${answer.status}.`, true);
    } catch {
      say("The server cannot be reached.", true);
    }
    return false;
  }

  function hubToken() {
    const field = document.getElementById("hub-token");
    return field && field.value ? { "X-Hub-Token": field.value } : {};
  }

  document.addEventListener("click", (event) => {
    const button = event.target.closest("button[data-path]");
    if (!button || (button.dataset.ask && !confirm(button.dataset.ask))) return;
    const { method, path, body, said: done } = button.dataset;
    send(method, path, body, done, path.endsWith("/retry") ? hubToken() : {});
  });

  document.addEventListener("submit", async (event) => {
    event.preventDefault();
    const form = event.target;
    if (form.id === "unlock") {
      admin = form.elements["admin-token"].value;
      again();
      return;
    }
    const value = (name) => form.elements[name].value.trim();
    const globs = (name) => value(name).split(/\s+/).filter(Boolean);
    const body = { source: value("source"), include: globs("include"), exclude: globs("exclude") };
    if (value("revision")) body.revision = value("revision");
    if (await send("POST", "jobs", JSON.stringify(body), `Fetching ${body.source}`, hubToken())) form.reset();
  });

  pause.addEventListener("click", () => {
    pause.setAttribute("aria-pressed", String(awake()));
    again();
  });
  document.addEventListener("visibilitychange", again);
  watch();
})();
