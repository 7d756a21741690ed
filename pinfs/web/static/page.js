// Shows the pictures of pinfs/web/look.py as they come. Texts only ever become text nodes.

const RETRY_MS = 3000; // after the server has refused the stream
const SILENCE_MS = 10000; // longest time without a picture
const SVG = "http://www.w3.org/2000/svg";

const byId = (id) => document.getElementById(id);
const shown = new Map(); // part of the page -> what it was made from
let behind_ms = 0; // this clock, relative to the server's
let lastPicture = performance.now();

function el(tag, className, ...children) {
  const element = document.createElement(tag);
  if (className) element.className = className;
  element.append(...children.filter((child) => child !== null).map((child) => child instanceof Node ? child : String(child)));
  return element;
}

// A part is replaced only when its data changes, so that a selection of text survives.
function show(id, data, make) {
  const key = JSON.stringify(data);
  if (shown.get(id) === key) return;
  shown.set(id, key);
  byId(id).replaceChildren(...make(data));
}

const number = (value) => value.toLocaleString("en");
const more = (count, what) => count ? [el("p", "more", `… and ${number(count)} more ${what}`)] : [];

function bytes(count) {
  const units = ["bytes", "KiB", "MiB", "GiB", "TiB", "PiB"];
  let unit = 0;
  while (count >= 1024 && unit < units.length - 1) { count /= 1024; unit += 1; }
  return `${unit && count < 100 ? count.toFixed(1) : Math.round(count)} ${units[unit]}`;
}

function duration(seconds) {
  const parts = [[86400, "d"], [3600, "h"], [60, "min"], [1, "s"]];
  const at = parts.findIndex(([size]) => seconds >= size);
  if (at < 0) return "0 s";
  const [size, unit] = parts[at];
  const rest = parts[at + 1];
  const first = `${Math.floor(seconds / size)} ${unit}`;
  return rest ? `${first} ${Math.floor(seconds % size / rest[0])} ${rest[1]}` : first;
}

// In numbers

function tile(value, what, hot) {
  return el("div", hot ? "tile hot" : "tile", el("b", "", value), el("span", "", what));
}

function tiles({ status, counters }) {
  const counted = (name) => counters[`pinfs_${name}`] ?? 0;
  return [
    tile(number(status.pins), "pins"),
    tile(bytes(counted("pinned_bytes")), "pinned"),
    tile(number(status.waiting), "breakers waiting", status.waiting > 0),
    tile(number(counted("breaks_started_total")), "breaks"),
    tile(number(counted("breaks_timed_out_total")), "of them timed out"),
    tile(number(counted("refusals_total")), "removals refused"),
    status.seal ? tile(number(status.sealed_files), "sealed files") : tile("no", "seals"),
    tile(status.passthrough ? "yes" : "no", "passthrough"),
  ];
}

// Files

function bar(file) {
  const svg = document.createElementNS(SVG, "svg");
  const attributes = { viewBox: "0 0 1000 20", preserveAspectRatio: "none", class: "bar", role: "img" };
  for (const [name, value] of Object.entries(attributes)) svg.setAttribute(name, value);
  svg.setAttribute("aria-label", `${number(file.count)} pins, listed below`);
  for (const [from, to, kind] of file.bar) {
    const rect = document.createElementNS(SVG, "rect");
    rect.setAttribute("class", kind);
    rect.setAttribute("x", Math.min(from, 997));
    rect.setAttribute("width", Math.max(to - from, 3));
    rect.setAttribute("height", 20);
    svg.append(rect);
  }
  return svg;
}

function countdown(deadline) {
  const left = el("span", "left");
  left.dataset.deadline = deadline;
  return left;
}

function holder(pin) {
  if (pin.uid === undefined) return el("span", "soft", "another user");
  const process = pin.pid === undefined ? "a handle" : `${pin.comm ?? "?"} (${pin.pid})`;
  return el("span", "", el("span", "mono", process), el("span", "soft", ` uid ${pin.uid}`));
}

function pinRow(pin) {
  const kind = pin.state === "breaking" ? "breaking" : pin.mode;
  const end = pin.length ? number(pin.start + pin.length) : "end";
  const mode = el("span", `mode ${pin.mode}`, pin.mode);
  return el("tr", kind,
    el("td", "number", pin.id),
    el("td", "number", `${number(pin.start)} – ${end}`),
    el("td", "number", mode, ...(pin.deadline ? [" ", countdown(pin.deadline)] : [])),
    el("td", "", holder(pin)),
    el("td", "note", pin.note ?? ""));
}

function table(className, headings, rows) {
  const head = el("tr", "", ...headings.map((heading) => el("th", "", heading)));
  return el("div", `table ${className}`, el("table", "", el("thead", "", head), el("tbody", "", ...rows)));
}

function file(one) {
  const size = one.size === null ? [] : [bytes(one.size)];
  const name = one.path ?? `inode ${one.inode}, without a name`;
  const facts = [`${number(one.count)} ${one.count === 1 ? "pin" : "pins"}`, ...size, ...(one.sealed ? ["sealed"] : [])];
  return el("article", "file",
    el("h3", "", el("span", "path", name), el("span", "soft", facts.join(", "))),
    bar(one),
    el("div", "axis", el("span", "", "0"), el("span", "", number(one.extent))),
    table("pins", ["Pin", "Bytes", "Mode", "Holder", "Note"], one.pins.map(pinRow)),
    ...more(one.more, "pins of this file"));
}

function files({ files, more: count }) {
  if (!files.length) return [el("p", "empty", "Nothing is pinned.")];
  return [...files.map(file), ...more(count, "files")];
}

// The side

function event(one) {
  const time = el("time", "", new Date(one.at * 1000).toLocaleTimeString("en-GB"));
  return el("li", one.event, time, el("b", "", one.event), " ", el("span", "words", one.words));
}

function events(list) {
  if (!list.length) return [el("li", "", el("span", "empty", "Nothing yet."))];
  return list.toReversed().map(event);
}

function holders({ holders, more: count }) {
  if (!holders.length) return [el("p", "empty", "None.")];
  const row = (one) => el("tr", one.breaking ? "breaking" : "",
    el("td", "mono", one.pid ?? "–"),
    el("td", "", one.uid === null ? el("span", "soft", "other users") : one.comm || el("span", "soft", "a handle")),
    el("td", "number", one.uid ?? "–"),
    el("td", "number", number(one.pins)));
  return [table("", ["Pid", "Command", "Uid", "Pins"], holders.map(row)), ...more(count, "holders")];
}

const values = (pairs) => pairs.map(([key, value]) => el("tr", "", el("td", "soft", key), el("td", "mono", value)));

function policy({ values: own, rules, more: count }) {
  const rule = (one) => el("div", "rule", "for ", el("span", "path", one.path), table("", [], values(one.values)));
  return [table("", [], values(own)), ...rules.map(rule), ...more(count, "rules")];
}

// The whole page

function footer({ status, sees_all, read }) {
  const seen = sees_all ? "" : " Holders of other users' pins are not shown, and breaks only if they last a second.";
  const part = read < status.pins ? ` Files and holders are those of the first ${number(read)} pins.` : "";
  const life = status.life ? ` The mount ${status.life}.` : "";
  const cluster = status.cluster ? ` Cluster ${status.cluster}.` : "";
  const missing = (what) => {
    const why = status[`${what}_unavailable_because`];
    return why ? ` No ${what}: ${why}.` : "";
  };
  const lacks = missing("passthrough") + missing("seal");
  return [`${status.source}, served by process ${status.pid} (pinfs ${status.version}).${life}${cluster}${lacks}${part}${seen}`];
}

function notice(text) {
  byId("notice").textContent = text;
  byId("notice").hidden = !text;
}

function state(className, text) {
  byId("state").className = `state ${className}`;
  if (byId("state").textContent !== text) byId("state").textContent = text;
}

function draw(picture) {
  lastPicture = performance.now();
  behind_ms = picture.at * 1000 - Date.now();
  byId("mount").textContent = picture.mount;
  document.title = `pinfs ${picture.mount}`;
  show("events", picture.events, events);
  if (picture.error) {
    state("bad", "not mounted");
    notice(`The mount does not answer: ${picture.error}. The page shows the last known state.`);
    return;
  }
  notice("");
  state("", `up for ${duration(picture.status.uptime_s)}`);
  show("tiles", { status: { ...picture.status, uptime_s: 0, descriptors: 0 }, counters: picture.counters }, tiles);
  show("files", picture.files, files);
  show("holders", picture.holders, holders);
  show("policy", picture.policy, policy);
  show("footer", { status: { ...picture.status, uptime_s: 0 }, sees_all: picture.sees_all, read: picture.read }, footer);
  tick();
}

function tick() {
  const now_s = (Date.now() + behind_ms) / 1000;
  for (const left of document.querySelectorAll("[data-deadline]")) {
    left.textContent = `${Math.max(0, left.dataset.deadline - now_s).toFixed(0)} s left`;
  }
  if (performance.now() - lastPicture > SILENCE_MS) state("waiting", "no news: is pinfs web still running?");
}

function follow() {
  const stream = new EventSource("news");
  stream.onmessage = (message) => draw(JSON.parse(message.data));
  stream.onerror = () => {
    state("waiting", "connecting…");
    if (stream.readyState === EventSource.CLOSED) setTimeout(follow, RETRY_MS);
  };
}

setInterval(tick, 500);
follow();
