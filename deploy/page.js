"use strict";
// The live page: pictures by one request after another, so that a slow line gets fewer and never older ones; numbers as
// the server sends them, once a second.

const KEPT = 600;                 // seconds of history
const COLOURS = 8;
const STAGES = ["wait", "preprocess", "invoke", "postprocess", "track"];
const TROUBLE = {opening: "warn", stalled: "bad", waiting: "bad", failed: "bad", ended: "", running: "good"};
const byId = (id) => document.getElementById(id);
const set = (id, text) => { const e = byId(id); if (e.textContent !== text) e.textContent = text; };
const pause = (ms) => new Promise((done) => setTimeout(done, ms));
const number = (value, digits = 1) => value === null || value === undefined ? "–" : value >= 100 ? Math.round(value).toLocaleString("en") : value.toFixed(digits);
const whole = (value) => Math.round(value).toLocaleString("en");
const sum = (values) => values.reduce((a, b) => a + b, 0);

function make(tag, text, name) {
  const e = document.createElement(tag);
  if (text !== undefined) e.textContent = text;
  if (name) e.className = name;
  return e;
}

function drawn(tag, values, text) {
  const e = document.createElementNS("http://www.w3.org/2000/svg", tag);
  for (const [key, value] of Object.entries(values)) e.setAttribute(key, value);
  if (text !== undefined) e.textContent = text;
  return e;
}

function duration(seconds) {
  const s = Math.floor(seconds), d = Math.floor(s / 86400), h = Math.floor(s / 3600) % 24, m = Math.floor(s / 60) % 60;
  if (d) return `${d} d ${h} h`;
  return h ? `${h} h ${m} min` : m ? `${m} min ${s % 60} s` : `${s} s`;
}

const clock = (at) => new Date(at * 1000).toLocaleTimeString("en-GB");

// Pictures

const pictures = new Map();
let chosen = null;                // null: all
let held = false;

class Picture {
  constructor(feed) {
    this.feed = feed;
    this.number = 0;
    this.box = make("figure", undefined, "picture");
    this.image = make("img");
    this.image.alt = `Live picture of feed ${feed} with what was found in it`;
    this.why = make("div", "no picture yet", "why");
    const caption = make("figcaption");
    this.name = make("b", feed);
    this.state = make("span", "");
    this.about = make("span", "");
    caption.append(this.name, this.state, this.about);
    this.box.append(this.image, this.why, caption);
    byId("pictures").append(this.box);
    this.gone = false;
    this.run();
  }

  async run() {
    let url = null;
    while (!this.gone) {
      if (held || document.hidden || this.box.hidden) { await pause(200); continue; }
      const width = Math.ceil(this.box.clientWidth * Math.min(window.devicePixelRatio || 1, 2));
      try {
        const answer = await fetch(`frame.jpg?feed=${encodeURIComponent(this.feed)}&after=${this.number}&width=${width}`);
        if (answer.status === 200) {
          this.number = Number(answer.headers.get("X-Frame"));
          const next = URL.createObjectURL(await answer.blob());
          const ready = new Image();
          ready.src = next;
          await ready.decode();
          this.image.src = next;
          this.image.dataset.number = this.number;
          if (url) URL.revokeObjectURL(url);
          url = next;
          const ratio = `${ready.naturalWidth} / ${ready.naturalHeight}`;
          if (this.box.style.aspectRatio !== ratio) this.box.style.aspectRatio = ratio;
        } else if (answer.status !== 204) {
          await pause(1000);
        }
      } catch {
        await pause(1000);          // the server is away; the numbers say so
      }
    }
  }

  show(feed, last) {
    const well = feed.state === "running" || feed.state === "ended";
    this.box.classList.toggle("troubled", !well);
    const silent = last !== undefined && last > 3 ? `last result ${duration(last)} ago` : "";
    this.why.textContent = well ? (last === undefined ? "no picture yet" : "") : [`${feed.state} for ${duration(feed.seconds)}`, feed.reason, silent].filter(Boolean).join(" · ");
    this.state.textContent = feed.state === "running" && feed.live ? "live" : feed.state;
    this.about.textContent = [feed.size ? `${feed.size[1]}×${feed.size[0]}` : "", `${number(feed.fps)} a second`].filter(Boolean).join(" · ");
  }
}

function choose(feed) {
  chosen = feed;
  for (const [name, picture] of pictures) picture.box.hidden = chosen !== null && chosen !== name;
  byId("pictures").classList.toggle("many", chosen === null && pictures.size > 1);
  for (const button of byId("tabs").children) button.setAttribute("aria-pressed", String((button.value || null) === chosen));
}

function feedsAre(feeds) {
  const names = feeds.map((feed) => feed.name);
  if (names.length === pictures.size && names.every((name) => pictures.has(name))) return;
  for (const [name, picture] of pictures) {
    if (names.includes(name)) continue;
    picture.gone = true;
    picture.box.remove();
    pictures.delete(name);
  }
  for (const name of names) if (!pictures.has(name)) pictures.set(name, new Picture(name));
  const tabs = byId("tabs");
  tabs.hidden = names.length < 2;
  tabs.replaceChildren(...["", ...names].map((name) => {
    const button = make("button", name || "All");
    button.type = "button";
    button.value = name;
    button.addEventListener("click", () => choose(name || null));
    return button;
  }));
  choose(names.includes(chosen) ? chosen : null);
}

// Numbers

function show(state) {
  feedsAre(state.feeds);
  for (const feed of state.feeds) pictures.get(feed.name).show(feed, state.last_result[feed.name]);
  set("model", state.model);
  set("uptime", duration(state.seconds));
  set("fps", number(state.fps));
  set("results", whole(state.results));
  set("age", number(state.age && state.age.p50));
  set("age95", number(state.age && state.age.p95));
  const invoke = state.milliseconds.invoke;
  set("invoke", number(invoke && invoke.p50));
  set("invoke95", number(invoke && invoke.p95));
  const dropped = sum(state.feeds.map((feed) => feed.dropped)), captured = sum(state.feeds.map((feed) => feed.captured));
  set("dropped", captured ? number(dropped / captured * 100) : "–");
  set("droppedsum", whole(dropped));
  set("memory", `${whole(state.memory / 1048576)} MB`);
  set("temperature", state.temperature === null ? "unavailable" : `${number(state.temperature, 0)} °C`);
  const running = state.feeds.filter((feed) => feed.state === "running").length;
  const over = state.feeds.length > 0 && state.feeds.every((feed) => feed.state === "ended");
  status(over ? "ended" : running === state.feeds.length ? "running" : `${running} of ${state.feeds.length} feeds running`, over ? "" : running === state.feeds.length ? "good" : running ? "warn" : "bad");
  showView(state);
  showCounts(state.counts);
  showStages(state.milliseconds);
  showEvents(state.events);
  showTables(state);
}

function status(text, kind) {
  set("status", text);
  byId("status").className = `chip ${kind}`;
}

function total(byFeed) {
  const all = {};
  for (const seen of Object.values(byFeed)) for (const [label, count] of Object.entries(seen)) all[label] = (all[label] || 0) + count;
  return all;
}

function showView(state) {
  const rows = Object.entries(total(state.in_view)).sort((a, b) => b[1] - a[1] || a[0].localeCompare(b[0])).slice(0, 8);
  const most = Math.max(10, ...rows.map((row) => row[1]));
  byId("view").replaceChildren(...(rows.length ? rows.map(([label, count]) => {
    const row = make("li"), track = make("span"), bar = make("i");
    bar.style.width = `${count / most * 100}%`;
    track.append(bar);
    row.append(make("span", label), track, make("b", String(count)));
    return row;
  }) : [make("li", "nothing", "none")]));
}

// What a zone holds or a line has counted: numbers as they are, counts by label in words, times as the longest.
function words(name, value) {
  if (typeof value !== "object" || value === null) return `${name} ${typeof value === "number" ? whole(value) : value}`;
  const rows = Object.entries(value);
  if (name === "dwell_s") return rows.length ? `longest ${duration(Math.max(...Object.values(value)))}` : "";
  return `${name} ${rows.length ? rows.map(([label, one]) => typeof one === "number" ? `${whole(one)} ${label}` : words(label, one)).join(", ") : 0}`;
}

function showCounts(counts) {
  const rows = Object.entries(counts).flatMap(([feed, named]) => Object.entries(named).map(([name, value]) => [Object.keys(counts).length > 1 ? `${feed} ${name}` : name, value]));
  byId("countcard").hidden = !rows.length;
  byId("counts").replaceChildren(...rows.map(([name, value]) => {
    const row = make("li");
    const parts = typeof value === "object" && value !== null ? Object.entries(value).map(([key, one]) => words(key, one)) : [String(value)];
    row.append(make("b", name), make("br"), parts.filter(Boolean).join(" · "));
    return row;
  }));
}

function pairs(id, rows) {
  byId(id).replaceChildren(...rows.map(([name, value]) => {
    const row = make("li", `${name} `);
    row.append(make("b", value));
    return row;
  }));
}

function showStages(milliseconds) {
  const names = [...STAGES.filter((name) => name in milliseconds), ...Object.keys(milliseconds).filter((name) => !STAGES.includes(name))];
  byId("stages").replaceChildren(...names.map((name) => {
    const part = make("i", undefined, `k${names.indexOf(name) % COLOURS}`);
    part.style.flexGrow = String(Math.max(milliseconds[name].p50, 0));
    part.title = `${name} ${number(milliseconds[name].p50, 2)} ms`;
    return part;
  }));
  legend("stagelist", names.map((name) => `${name} ${number(milliseconds[name].p50, 2)}`));
}

function legend(id, texts) {
  byId(id).replaceChildren(...texts.map((text, place) => {
    const row = make("li");
    row.append(make("i", undefined, `k${place % COLOURS}`), text);
    return row;
  }));
}

let newestEvents = "";
function showEvents(events) {
  const same = JSON.stringify(events);
  if (same === newestEvents) return;
  newestEvents = same;
  byId("events").replaceChildren(...(events.length ? [...events].reverse().map((event) => {
    const row = make("li"), kind = make("span", event.kind, TROUBLE[event.kind] || "");
    row.append(make("span", clock(event.at), "soft"), kind, make("span", event.text));
    return row;
  }) : [make("li", "none yet", "none")]));
}

function showTables(state) {
  byId("feeds").replaceChildren(...state.feeds.flatMap((feed) => {
    const row = make("tr"), cell = make("td");
    cell.append(make("span", feed.state, `chip ${TROUBLE[feed.state] || ""}`));
    row.append(make("td", feed.name), cell, make("td", feed.size ? `${feed.size[1]}×${feed.size[0]}` : "–"), make("td", number(feed.fps)), make("td", whole(feed.captured)), make("td", whole(feed.dropped)), make("td", whole(feed.corrupt)), make("td", whole(feed.reconnects)));
    return [row, note([feed.address, feed.reason].filter(Boolean).join(" · "), 8)];
  }));
  byId("outputs").replaceChildren(...state.outputs.flatMap((output) => {
    const row = make("tr");
    row.append(make("td", output.name), make("td", whole(output.sent)), make("td", whole(output.dropped)), make("td", whole(output.failed)), make("td", whole(output.waiting)));
    return output.error ? [row, note(output.error, 5)] : [row];
  }));
  pairs("sofar", Object.entries(state.detections).sort((a, b) => b[1] - a[1]).map(([label, count]) => [label, whole(count)]));
  if (!Object.keys(state.detections).length) byId("sofar").replaceChildren(make("li", "nothing", "none"));
}

function note(text, columns) {
  const row = make("tr"), cell = make("td", text, "words");
  cell.colSpan = columns;
  row.append(cell);
  return row;
}

// History

let samples = [];
const cursors = new Map();        // by plot: seconds since 1970 under the pointer

function roundUp(value) {
  const step = 10 ** Math.floor(Math.log10(value));
  return [1, 2, 5, 10].map((one) => one * step).find((one) => one >= value * 0.999);
}

function plot(id, series, readout, digits = 1) {
  const box = byId(id), width = box.clientWidth || 300, height = box.clientHeight || 150;
  const left = 34, right = 6, top = 8, bottom = 18, now = samples.length ? samples[samples.length - 1].at : 0;
  const span = samples.length && now - samples[0].at > 110 ? KEPT : 120;  // a run that is young fills the plot too
  const most = roundUp(Math.max(2, ...series.flat().filter((value) => value !== null)));
  const x = (at) => left + (width - left - right) * (1 - (now - at) / span), y = (value) => height - bottom - (height - top - bottom) * value / most;
  const parts = [0, 0.5, 1].flatMap((part) => [
    drawn("line", {x1: left, x2: width - right, y1: y(most * part), y2: y(most * part)}),
    drawn("text", {x: left - 6, y: y(most * part) + 4, "text-anchor": "end"}, String(most * part)),
  ]);
  for (const part of [1, 0.5, 0]) parts.push(drawn("text", {x: x(now - span * part), y: height - 4, "text-anchor": part === 1 ? "start" : part ? "middle" : "end"}, part ? `−${span * part / 60} min` : "now"));
  series.forEach((values, place) => {
    let path = "", broken = true;
    values.forEach((value, i) => {
      if (value === null || (i && samples[i].at - samples[i - 1].at > 5)) broken = true;
      if (value === null) return;
      path += `${broken ? "M" : "L"}${x(samples[i].at).toFixed(1)} ${y(value).toFixed(1)}`;
      broken = false;
    });
    parts.push(drawn("path", {d: path || "M0 0", class: `k${place % COLOURS}`}));
  });
  box.setAttribute("viewBox", `0 0 ${width} ${height}`);
  let pointed = samples.length - 1;
  if (cursors.has(id) && samples.length) {
    const at = now - span * (1 - (cursors.get(id) - left) / (width - left - right));
    pointed = samples.reduce((best, sample, i) => Math.abs(sample.at - at) < Math.abs(samples[best].at - at) ? i : best, 0);
    parts.push(drawn("line", {class: "cursor", x1: x(samples[pointed].at), x2: x(samples[pointed].at), y1: top, y2: height - bottom}));
  }
  box.replaceChildren(...parts);
  set(readout, pointed < 0 ? "" : `${cursors.has(id) ? `${clock(samples[pointed].at)}: ` : ""}${series.map((values) => number(values[pointed], digits)).join(" · ")}`);
}

function plots() {
  if (document.hidden) return;
  plot("fpsplot", [samples.map((sample) => sample.fps)], "fpsat");
  plot("ageplot", [samples.map((sample) => sample.age_ms)], "ageat");
  const sums = {};
  for (const sample of samples) for (const [label, count] of Object.entries(sample.in_view)) sums[label] = (sums[label] || 0) + count;
  const labels = Object.keys(sums).sort((a, b) => sums[b] - sums[a]).slice(0, 5);
  plot("viewplot", labels.map((label) => samples.map((sample) => sample.in_view[label] || 0)), "viewat", 0);
  legend("viewlegend", labels);
}

for (const id of ["fpsplot", "ageplot", "viewplot"]) {
  byId(id).addEventListener("pointermove", (event) => { cursors.set(id, event.offsetX); plots(); });
  byId(id).addEventListener("pointerleave", () => { cursors.delete(id); plots(); });
}

function remember(state) {
  if (samples.length && state.at <= samples[samples.length - 1].at) return;
  samples.push({at: state.at, fps: state.fps, age_ms: state.age ? state.age.p50 : null, in_view: total(state.in_view)});
  samples = samples.filter((sample) => sample.at > state.at - KEPT);
}

// The line to the server

function listen() {
  const source = new EventSource("events");
  source.addEventListener("open", async () => {
    try {
      const past = await (await fetch("history.json")).json();
      if (past.length) samples = past;
      plots();
    } catch { /* the next seconds fill it */ }
  });
  source.addEventListener("message", (message) => {
    const state = JSON.parse(message.data);
    show(state);
    remember(state);
    plots();
  });
  source.addEventListener("error", () => {
    status("connection lost, trying again", "bad");
    if (source.readyState === EventSource.CLOSED) setTimeout(listen, 3000);
  });
}

byId("pause").addEventListener("click", (event) => {
  held = !held;
  event.target.setAttribute("aria-pressed", String(held));
  event.target.textContent = held ? "Resume" : "Pause";
});
window.addEventListener("resize", plots);
if (location.search.includes("token=")) history.replaceState(null, "", location.pathname);  // the cookie has it now
listen();
