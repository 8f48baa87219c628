/* Review by keyboard: decisions about nuclei and images, kept as a draft in the browser and saved to a file. */
const VERDICTS = { a: "accepted", r: "rejected", f: "flagged" };
const LOOK = {
  none: { color: "#e61e8c", dash: [] },
  accepted: { color: "#149a3c", dash: [] },
  rejected: { color: "#d1341f", dash: [3, 3] },
  flagged: { color: "#e08a00", dash: [8, 3] },
};

function startReview(root) {
  const images = data.images.filter((image) => image.review);
  if (!root || !images.length) return;
  const key = "cervseg-jax review " + data.review.id;
  let decisions = readDraft();
  let history = [], current = 0, nucleus = 0, whole = true, view = { scale: 1, x: 0, y: 0 };
  const picture = new Image();
  const cache = new Map();

  const canvas = make("canvas", { "aria-hidden": "true" });
  const stage = make("div", { class: "review-stage", tabindex: 0, role: "application", "aria-label":
    "picture for review; press keys here", "aria-describedby": "review-keys", onkeydown: pressed, onclick: clicked }, canvas);
  const where = make("p", { class: "review-where" });
  const said = make("p", { class: "review-said", role: "status" });
  const choose = make("select", { onchange: () => { openImage(choose.selectedIndex); stage.focus(); } });
  const file = make("input", { type: "file", accept: ".json", onchange: load });
  const button = (text, act, name = text) =>
    make("button", { type: "button", "aria-label": name, onclick: () => { act(); draw(); } }, text);
  root.append(
    make("div", { class: "controls" }, make("label", {}, "image", choose),
      button("Previous", () => step(-1), "previous image"), button("Next", () => step(1), "next image"),
      button("Save decisions.json", save), make("label", {}, "continue from a file", file)),
    where, stage,
    make("div", { class: "controls" },
      make("span", {}, "nucleus"), button("◂", () => move(-1), "previous nucleus"), button("▸", () => move(1), "next nucleus"),
      ...Object.values(VERDICTS).map((verdict) => button(verb(verdict), () => decide(verdict), verb(verdict) + " nucleus")),
      make("span", {}, "image"),
      ...Object.values(VERDICTS).map((verdict) => button(verb(verdict), () => decideImage(verdict), verb(verdict) + " image")),
      button("Undo", undo), button("Zoom", () => { whole = !whole; })),
    said,
    make("p", { class: "review-legend" }, "Outlines: ",
      ...Object.entries({ none: "not decided (pink)", accepted: "accepted (green)", rejected: "rejected (red, dotted)",
        flagged: "flagged (orange, dashed)" }).map(([name, text]) =>
        make("span", {}, make("i", { class: name }), text))));
  picture.addEventListener("load", draw);
  new ResizeObserver(draw).observe(stage);
  openImage(0);

  function verb(verdict) { return { accepted: "Accept", rejected: "Reject", flagged: "Flag" }[verdict]; }

  function entryOf(image) { return (decisions[image.name] ??= { decision: null, nuclei: {} }); }

  function readDraft() {
    try { return JSON.parse(localStorage.getItem(key)) || {}; } catch { return {}; }
  }

  function keepDraft() {
    try { localStorage.setItem(key, JSON.stringify(decisions)); return ""; } catch { return " The browser keeps no draft: save the file."; }
  }

  function openImage(index) {
    current = Math.max(0, Math.min(images.length - 1, index));
    nucleus = 0; whole = true;
    const image = images[current];
    if (!cache.has(image.name)) cache.set(image.name, image.review.nuclei.map(pathOf));
    picture.src = image.review.picture || image.layers.image;
    picture.alt = "";
    draw();
  }

  function pathOf(one) {
    const path = new Path2D();
    for (const ring of one.rings) {
      for (let at = 0; at < ring.length; at += 2) at ? path.lineTo(ring[at], ring[at + 1]) : path.moveTo(ring[0], ring[1]);
      path.closePath();
    }
    return path;
  }

  function step(by) { openImage(current + by); }

  function move(by) {
    const count = images[current].review.nuclei.length;
    if (count) nucleus = (nucleus + by + count) % count;
  }

  function decide(verdict) {
    const image = images[current], one = image.review.nuclei[nucleus];
    if (!one) return;
    const entry = entryOf(image), before = entry.nuclei[one.label] || null;
    history.push({ current, nucleus, label: one.label, before });
    set(entry.nuclei, one.label, before === verdict ? null : verdict);
    const moved = before !== verdict && nucleus + 1 < image.review.nuclei.length;
    say(before === verdict ? `nucleus ${nucleus + 1}: decision taken back` : `nucleus ${nucleus + 1} ${verdict}`);
    if (moved) nucleus += 1;
  }

  function decideImage(verdict) {
    const entry = entryOf(images[current]), before = entry.decision;
    history.push({ current, nucleus, label: null, before });
    entry.decision = before === verdict ? null : verdict;
    say(entry.decision ? `image ${verdict}` : "image: decision taken back");
  }

  function set(table, label, verdict) { if (verdict) table[label] = verdict; else delete table[label]; }

  function undo() {
    const last = history.pop();
    if (!last) { say("nothing to undo"); return; }
    if (last.current !== current) openImage(last.current);
    nucleus = last.nucleus;
    const entry = entryOf(images[current]);
    if (last.label === null) entry.decision = last.before; else set(entry.nuclei, last.label, last.before);
    say("undone");
  }

  function say(text) { said.textContent = text + "." + keepDraft(); }

  function pressed(event) {
    if (event.ctrlKey || event.metaKey || event.altKey) return;
    const name = event.key.toLowerCase(), shift = event.shiftKey;
    if (name in VERDICTS) (shift ? decideImage : decide)(VERDICTS[name]);
    else if (name === "j" || name === "k") (shift ? step : move)(name === "j" ? 1 : -1);
    else if (name === "u") undo();
    else if (name === "z") whole = !whole;
    else if (name === "s") save();
    else return;
    event.preventDefault();
    draw();
  }

  function clicked(event) {
    const box = canvas.getBoundingClientRect(), pen = canvas.getContext("2d");
    const x = (event.clientX - box.left - view.x) / view.scale, y = (event.clientY - box.top - view.y) / view.scale;
    pen.setTransform(1, 0, 0, 1, 0, 0);
    const found = cache.get(images[current].name).findIndex((path) => pen.isPointInPath(path, x, y, "evenodd"));
    if (found >= 0) nucleus = found;
    draw();
  }

  function place() {
    const image = images[current].review, [height, width] = image.size, one = image.nuclei[nucleus];
    const room = { width: stage.clientWidth, height: stage.clientHeight };
    let scale = Math.min(room.width / width, room.height / height), x = width / 2, y = height / 2;
    if (!whole && one) {
      const xs = one.rings[0].filter((_, at) => at % 2 === 0), ys = one.rings[0].filter((_, at) => at % 2);
      const size = Math.max(Math.max(...xs) - Math.min(...xs), Math.max(...ys) - Math.min(...ys), 8);
      scale = Math.max(scale, Math.min(room.width, room.height) / (5 * size));
      [x, y] = one.point;
    }
    view = { scale, x: room.width / 2 - x * scale, y: room.height / 2 - y * scale };
    return room;
  }

  function draw() {
    const image = images[current], entry = decisions[image.name] || { decision: null, nuclei: {} }, room = place();
    const ratio = window.devicePixelRatio || 1, [height, width] = image.review.size;
    canvas.width = room.width * ratio; canvas.height = room.height * ratio;
    const pen = canvas.getContext("2d"), paths = cache.get(image.name), one = image.review.nuclei[nucleus];
    pen.setTransform(ratio * view.scale, 0, 0, ratio * view.scale, ratio * view.x, ratio * view.y);
    pen.imageSmoothingEnabled = view.scale < 4;
    if (picture.complete && picture.naturalWidth) pen.drawImage(picture, 0, 0, width, height);
    image.review.nuclei.forEach((other, index) => {
      const look = LOOK[entry.nuclei[other.label] || "none"];
      pen.strokeStyle = look.color;
      pen.setLineDash(look.dash.map((length) => length / view.scale));
      pen.lineWidth = (index === nucleus ? 3 : 1.5) / view.scale;
      pen.stroke(paths[index]);
    });
    if (one) {
      pen.setLineDash([]);
      for (const [color, wide] of [["#000", 3], ["#fff", 1.5]]) {
        pen.strokeStyle = color; pen.lineWidth = wide / view.scale;
        const reach = 14 / view.scale, xs = one.rings[0].filter((_, at) => at % 2 === 0), ys = one.rings[0].filter((_, at) => at % 2);
        const left = Math.min(...xs) - reach / 3, top = Math.min(...ys) - reach / 3;
        pen.strokeRect(left, top, Math.max(...xs) + reach / 3 - left, Math.max(...ys) + reach / 3 - top);
      }
    }
    describe(image, entry, one);
  }

  function describe(image, entry, one) {
    const count = image.review.nuclei.length, done = Object.keys(entry.nuclei).length;
    const state = one ? `nucleus ${nucleus + 1} of ${count}: ${entry.nuclei[one.label] || "not decided"}` : "no nuclei";
    where.textContent = `${image.name}: image ${entry.decision || "not decided"}; ${state}; ${done} of ${count} nuclei decided`;
    choose.replaceChildren(...images.map((other, index) => make("option", { selected: index === current },
      other.name + (decisions[other.name]?.decision ? ` (${decisions[other.name].decision})` : ""))));
  }

  function content() {
    const listed = images.filter((image) => {
      const entry = decisions[image.name];
      return entry && (entry.decision || Object.keys(entry.nuclei).length);
    });
    return { format: "cervseg-jax decisions", version: 1, folder: data.review.folder, images: listed.map((image) => {
      const entry = decisions[image.name];
      return { image: image.name, file: image.review.file, decision: entry.decision,
        nuclei: image.review.nuclei.filter((one) => entry.nuclei[one.label]).map((one) =>
          ({ label: one.label, x: one.point[0], y: one.point[1], decision: entry.nuclei[one.label] })) };
    }) };
  }

  async function save() {
    const text = JSON.stringify(content(), null, 1) + "\n";
    if (window.showSaveFilePicker) {
      try {
        const handle = await window.showSaveFilePicker({ suggestedName: "decisions.json",
          types: [{ description: "decisions", accept: { "application/json": [".json"] } }] });
        const out = await handle.createWritable();
        await out.write(text);
        await out.close();
        said.textContent = `saved as ${handle.name}.`;
        return;
      } catch (error) {
        if (error.name === "AbortError") { said.textContent = "not saved."; return; }
      }
    }
    const link = make("a", { href: URL.createObjectURL(new Blob([text], { type: "application/json" })), download: "decisions.json" });
    link.click();
    setTimeout(() => URL.revokeObjectURL(link.href), 1000);
    said.textContent = "decisions.json is in the folder of downloads.";
  }

  async function load() {
    if (!file.files.length) return;
    try {
      const given = JSON.parse(await file.files[0].text());
      if (given.format !== "cervseg-jax decisions") throw new Error("it holds no decisions");
      const known = new Map(images.map((image) => [image.name, image]));
      const read = {};
      for (const entry of given.images) {
        if (!known.has(entry.image)) continue;
        read[entry.image] = { decision: entry.decision, nuclei: Object.fromEntries(entry.nuclei.map((one) => [one.label, one.decision])) };
      }
      decisions = read; history = [];
      say(`read the decisions about ${Object.keys(read).length} images`);
    } catch (error) { said.textContent = `${file.files[0].name} cannot be read: ${error.message}.`; }
    file.value = "";
    draw();
  }
}

startReview(document.getElementById("review"));
