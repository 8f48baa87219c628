"use strict";
const data = JSON.parse(document.getElementById("page-data").textContent);
const COLORS = ["#1b6ca8", "#d1495b", "#2a9d68", "#8a5cb5", "#c77d00"];

function make(tag, attributes = {}, ...children) {
  const inSvg = ["svg", "g", "path", "line", "text", "rect", "circle", "title"].includes(tag);
  const node = inSvg ? document.createElementNS("http://www.w3.org/2000/svg", tag) : document.createElement(tag);
  for (const [name, value] of Object.entries(attributes)) {
    if (name.startsWith("on")) node.addEventListener(name.slice(2), value);
    else if (value !== null && value !== false) node.setAttribute(name, value === true ? "" : value);
  }
  node.append(...children.filter((child) => child !== null));
  return node;
}

function format(value) {
  if (value === null || value === undefined) return "undefined";
  if (Number.isInteger(value)) return String(value);
  return Math.abs(value) >= 0.001 ? String(Number(value.toPrecision(4))) : value.toExponential(2);
}

/* Training curves: small charts that share one range of epochs. */
function drawCurves(root) {
  const history = data.history;
  const epochs = history.epoch || [];
  if (!root || !epochs.length) return;
  const others = ["epoch", "step", "learning_rate", "seconds", "images_per_second", "input_wait"];
  const bases = Object.keys(history).filter((name) => !others.includes(name) && !name.startsWith("val_"));
  const scores = bases.filter((name) => name !== "loss");
  const charts = [["loss", ["loss"]], ["metrics", scores], ["learning rate", ["learning_rate"]]];
  const full = [epochs[0], Math.max(epochs[epochs.length - 1], epochs[0] + 1)];
  let range = [...full];
  const from = make("input", { type: "number", min: full[0], max: full[1], value: full[0], onchange: typed });
  const to = make("input", { type: "number", min: full[0], max: full[1], value: full[1], onchange: typed });
  const reset = make("button", { type: "button", onclick: () => zoom(full) }, "All epochs");
  const holder = make("div", { class: "charts" });
  root.append(
    make("div", { class: "controls" },
      make("label", {}, "epochs from", from), make("label", {}, "to", to), reset,
      make("span", {}, "or drag across a chart")),
    holder);

  function typed() { zoom([Number(from.value), Number(to.value)]); }

  function zoom([low, high]) {
    low = Math.max(full[0], Math.min(low, full[1] - 1));
    high = Math.min(full[1], Math.max(high, low + 1));
    range = [low, high];
    from.value = low; to.value = high;
    holder.replaceChildren(...charts.filter(([, names]) => names.length).map(chart));
  }

  function chart([title, names]) {
    const width = 380, height = 240, left = 56, right = 10, top = 12, bottom = 28;
    const series = names.flatMap((name, number) => {
      const color = COLORS[number % COLORS.length];
      const train = { name, values: history[name], color, style: history["val_" + name] ? "train" : "" };
      return history["val_" + name] ? [train, { name: "val_" + name, values: history["val_" + name], color, style: "" }] : [train];
    });
    const inside = epochs.map((epoch, row) => row).filter((row) => epochs[row] >= range[0] && epochs[row] <= range[1]);
    const values = series.flatMap((line) => inside.map((row) => line.values[row])).filter((value) => value !== null);
    let low = Math.min(...values), high = Math.max(...values);
    if (!values.length) [low, high] = [0, 1];
    if (high - low < 1e-12) [low, high] = [low - Math.abs(low) * 0.1 - 1e-9, high + Math.abs(high) * 0.1 + 1e-9];
    const x = (epoch) => left + ((epoch - range[0]) / (range[1] - range[0])) * (width - left - right);
    const y = (value) => top + ((high - value) / (high - low)) * (height - top - bottom);
    const label = `${title} over epochs ${range[0]} to ${range[1]}`;
    const svg = make("svg", { viewBox: `0 0 ${width} ${height}`, role: "img", "aria-label": label });
    for (let tick = 0; tick <= 4; tick++) {
      const value = low + ((high - low) * tick) / 4;
      svg.append(make("line", { class: "grid", x1: left, x2: width - right, y1: y(value), y2: y(value) }),
        make("text", { x: left - 5, y: y(value) + 4, "text-anchor": "end" }, format(Number(value.toPrecision(3)))));
      const epoch = Math.round(range[0] + ((range[1] - range[0]) * tick) / 4);
      svg.append(make("text", { x: x(epoch), y: height - 9, "text-anchor": "middle" }, String(epoch)));
    }
    for (const epoch of data.drops) if (epoch >= range[0] && epoch <= range[1])
      svg.append(make("line", { class: "mark", x1: x(epoch), x2: x(epoch), y1: top, y2: height - bottom },
        make("title", {}, `learning rate reduced at epoch ${epoch}`)));
    if (data.best >= range[0] && data.best <= range[1])
      svg.append(make("line", { class: "best", x1: x(data.best), x2: x(data.best), y1: top, y2: height - bottom },
        make("title", {}, `best epoch ${data.best}`)));
    for (const line of series) {
      let path = "", pen = "M";
      for (const row of inside) {
        if (line.values[row] === null) { pen = "M"; continue; }
        path += `${pen}${x(epochs[row]).toFixed(1)},${y(line.values[row]).toFixed(1)}`;
        pen = "L";
      }
      svg.append(make("path", { d: path || "M0,0", class: line.style, stroke: line.color }));
      if (inside.length === 1) svg.append(make("circle", { cx: x(epochs[inside[0]]), cy: y(line.values[inside[0]]), r: 3, fill: line.color }));
    }
    const key = make("div", { class: "key" });
    const showNames = () => key.replaceChildren(...series.map((line) =>
      make("span", {}, make("i", { class: line.style, style: `color:${line.color}` }), line.name)));
    showNames();
    const epochAt = (event) => {
      const box = svg.getBoundingClientRect();
      const place = ((event.clientX - box.left) / box.width) * width;
      return range[0] + ((place - left) / (width - left - right)) * (range[1] - range[0]);
    };
    let start = null;
    const drag = make("rect", { class: "drag", y: top, height: height - top - bottom, width: 0, x: 0 });
    svg.append(drag);
    svg.addEventListener("pointerdown", (event) => { start = epochAt(event); svg.setPointerCapture(event.pointerId); });
    svg.addEventListener("pointermove", (event) => {
      const epoch = epochAt(event);
      if (start !== null) {
        const [a, b] = [x(Math.min(start, epoch)), x(Math.max(start, epoch))];
        drag.setAttribute("x", a); drag.setAttribute("width", Math.max(0, b - a));
      }
      const row = inside.reduce((best, next) => Math.abs(epochs[next] - epoch) < Math.abs(epochs[best] - epoch) ? next : best, inside[0]);
      if (row !== undefined) key.replaceChildren(make("span", {}, `epoch ${epochs[row]}`), ...series.map((line) =>
        make("span", {}, make("i", { class: line.style, style: `color:${line.color}` }), `${line.name} ${format(line.values[row])}`)));
    });
    svg.addEventListener("pointerup", (event) => {
      const [a, b] = [start, epochAt(event)].sort((a, b) => a - b);
      start = null;
      if (b - a >= 1) zoom([Math.round(a), Math.round(b)]);
      else drag.setAttribute("width", 0);
    });
    svg.addEventListener("pointerleave", showNames);
    svg.addEventListener("dblclick", () => zoom(full));
    return make("figure", { class: "chart" }, make("figcaption", {}, title), svg, key);
  }
  zoom(full);
}

/* Masks of the preview images after each epoch. */
function drawEpochs(root) {
  const previews = data.epochs;
  if (!root || !previews) return;
  const last = previews.epochs.length - 1;
  const slider = make("input", { type: "range", min: 0, max: last, value: last, oninput: show, "aria-label": "epoch" });
  const text = make("output", {});
  const overlays = previews.images.map((image) => make("img", { alt: `predicted mask of ${image.name}` }));
  let timer = null;
  const play = make("button", { type: "button", onclick: toggle, "aria-pressed": "false" }, "Play");
  root.append(
    make("div", { class: "controls" }, make("label", {}, "epoch", slider), text, play),
    make("div", { class: "frames" }, ...previews.images.map((image, index) =>
      make("figure", {}, make("div", {}, make("img", { src: image.image, alt: image.name }), overlays[index]),
        make("figcaption", {}, image.name)))));

  function show() {
    const epoch = Number(slider.value);
    text.textContent = String(previews.epochs[epoch]);
    previews.images.forEach((image, index) => {
      overlays[index].hidden = !image.masks[epoch];
      if (image.masks[epoch]) overlays[index].src = image.masks[epoch];
    });
  }

  function toggle() {
    const starts = timer === null;
    if (starts) {
      if (Number(slider.value) === last) slider.value = 0;
      timer = setInterval(() => {
        if (Number(slider.value) >= last) return toggle();
        slider.value = Number(slider.value) + 1;
        show();
      }, 350);
    } else {
      clearInterval(timer);
      timer = null;
    }
    play.setAttribute("aria-pressed", String(starts));
    play.textContent = starts ? "Stop" : "Play";
    show();
  }
  show();
}

/* Gallery: can be sorted and filtered; thumbnails are decoded when they come into view. */
function drawGallery(root) {
  const images = data.images;
  if (!root || !images.length) return;
  const names = [...new Set(images.flatMap((image) => Object.keys(image.scores)))];
  const title = (name) => data.scores[name].title;
  const score = make("select", { onchange: worstFirst }, ...names.map((name) => make("option", { value: name }, title(name))));
  const order = make("button", { type: "button", onclick: () => sort(order.getAttribute("aria-pressed") !== "true") });
  const low = make("input", { type: "number", step: "any", oninput: update, "aria-label": "at least" });
  const high = make("input", { type: "number", step: "any", oninput: update, "aria-label": "at most" });
  const text = make("input", { type: "search", oninput: update, placeholder: "name or source" });
  const count = make("span", { role: "status" });
  const list = make("ul", { class: "cards" });
  root.append(
    make("div", { class: "controls" },
      make("label", {}, "sort by", score), order, make("label", {}, "from", low), make("label", {}, "to", high),
      make("label", {}, "search", text), count),
    list);
  let visible = [];
  const seen = new IntersectionObserver((entries) => entries.forEach((entry) => {
    if (!entry.isIntersecting) return;
    const picture = entry.target.querySelector("img");
    if (picture && !picture.src) picture.src = picture.owner.thumbnail;
    seen.unobserve(entry.target);
  }), { rootMargin: "400px" });
  const cards = new Map(images.map((image) => [image, card(image)]));

  function card(image) {
    const picture = image.thumbnail ? make("img", { alt: `outlines on ${image.name}` }) : make("i", { class: "blank" });
    picture.owner = image;
    const button = make("button", { type: "button", onclick: () => view(visible, visible.indexOf(image)) },
      picture, make("b", { title: image.name }, image.name), make("span", {}));
    return make("li", {}, button);
  }

  function sort(isDown) {
    order.setAttribute("aria-pressed", String(isDown));
    order.textContent = isDown ? "highest first" : "lowest first";
    update();
  }

  function worstFirst() { sort(data.scores[score.value].better === "lower"); }

  function update() {
    const name = score.value, isDown = order.getAttribute("aria-pressed") === "true";
    const words = text.value.toLowerCase();
    const from = low.value === "" ? -Infinity : Number(low.value), to = high.value === "" ? Infinity : Number(high.value);
    visible = images.filter((image) => {
      const value = image.scores[name];
      const isUnknown = value === null || value === undefined;
      if (isUnknown ? low.value !== "" || high.value !== "" : value < from || value > to) return false;
      return !words || image.name.toLowerCase().includes(words) || image.group.toLowerCase().includes(words);
    });
    const rank = (image) => image.scores[name] ?? (isDown ? -Infinity : Infinity);
    visible.sort((a, b) => (isDown ? rank(b) - rank(a) : rank(a) - rank(b)) || 0);
    list.replaceChildren(...visible.map((image) => cards.get(image)));
    for (const image of visible) {
      const node = cards.get(image);
      node.querySelector("span").textContent = `${title(name)} ${format(image.scores[name])}`;
      seen.observe(node);
    }
    count.textContent = `${visible.length} of ${images.length} images`;
  }
  worstFirst();
  addEventListener("beforeprint", () => list.querySelectorAll("img").forEach((picture) => { picture.src = picture.owner.thumbnail; }));
}

/* Viewer: one image in layers, with zoom and pan. */
const viewer = { on: { image: true, truth: true, prediction: true }, opacity: 1 };

function view(images, number) {
  const image = images[number];
  const layers = image.layers || { image: image.thumbnail };
  const stack = make("div", { class: "stack" });
  const stage = make("div", { class: "stage", tabindex: "0", "aria-label": "image; plus and minus zoom, arrows move" }, stack);
  const toggles = Object.keys(layers).map((name, place) => make("button", {
    type: "button", "aria-pressed": String(Boolean(viewer.on[name])), "data-layer": name,
    onclick: () => { viewer.on[name] = !viewer.on[name]; apply(); },
  }, `${place + 1} ${name}`));
  const opacity = make("input", { type: "range", min: 0.1, max: 1, step: 0.1, value: viewer.opacity,
    oninput: () => { viewer.opacity = Number(opacity.value); apply(); } });
  const scores = Object.entries(image.scores).map(([name, value]) => `${data.scores[name].title} ${format(value)}`).join(" · ");
  const move = (step) => { dialog.remove(); view(images, (number + step + images.length) % images.length); };
  const dialog = make("dialog", { "aria-label": `image ${image.name}`, onclose: () => dialog.remove(), onkeydown: keys },
    make("div", { class: "viewer" },
      make("header", {}, make("h3", {}, image.name),
        make("span", {},
          make("button", { type: "button", onclick: () => move(-1), "aria-label": "previous image" }, "‹"), " ",
          make("button", { type: "button", onclick: () => move(1), "aria-label": "next image" }, "›"), " ",
          make("button", { type: "button", onclick: () => dialog.close() }, "Close"))),
      make("div", { class: "controls" }, ...toggles, make("label", {}, "opacity", opacity),
        make("button", { type: "button", onclick: fit }, "Fit")),
      stage, make("p", {}, scores)));
  document.body.append(dialog);
  dialog.showModal();
  stage.focus();
  const place = { scale: 1, x: 0, y: 0 };
  let width = 1, height = 1;
  for (const [name, source] of Object.entries(layers)) stack.append(make("img", { src: source, alt: name, "data-layer": name }));
  const first = stack.querySelector("img");
  if (first) first.addEventListener("load", () => { [width, height] = [first.naturalWidth, first.naturalHeight]; fit(); });

  function apply() {
    for (const node of stack.children) {
      node.hidden = !viewer.on[node.dataset.layer];
      node.style.opacity = node.dataset.layer === "image" ? 1 : viewer.opacity;
    }
    for (const toggle of toggles) toggle.setAttribute("aria-pressed", String(Boolean(viewer.on[toggle.dataset.layer])));
    stack.style.cssText = `width:${width}px;height:${height}px;image-rendering:${place.scale > 3 ? "pixelated" : "auto"};` +
      `transform:translate(${place.x}px,${place.y}px) scale(${place.scale}) translate(-50%,-50%)`;
  }

  function fit() {
    place.scale = Math.min(stage.clientWidth / width, stage.clientHeight / height) || 1;
    place.x = place.y = 0;
    apply();
  }

  function zoomBy(factor, x = 0, y = 0) {
    const next = Math.min(40, Math.max(0.1, place.scale * factor));
    place.x = x - (x - place.x) * (next / place.scale);
    place.y = y - (y - place.y) * (next / place.scale);
    place.scale = next;
    apply();
  }

  function keys(event) {
    if (event.target.matches("input")) return;
    const actions = {
      "+": () => zoomBy(1.25), "=": () => zoomBy(1.25), "-": () => zoomBy(0.8), "0": fit,
      ArrowLeft: () => { place.x += 40; apply(); }, ArrowRight: () => { place.x -= 40; apply(); },
      ArrowUp: () => { place.y += 40; apply(); }, ArrowDown: () => { place.y -= 40; apply(); },
      PageUp: () => move(-1), p: () => move(-1), PageDown: () => move(1), n: () => move(1),
    };
    const toggle = toggles[Number(event.key) - 1];
    if (toggle && event.key !== "0") toggle.click();
    else if (actions[event.key]) actions[event.key]();
    else return;
    event.preventDefault();
  }

  stage.addEventListener("wheel", (event) => {
    event.preventDefault();
    const box = stage.getBoundingClientRect();
    zoomBy(Math.exp(-event.deltaY / 400), event.clientX - box.left - box.width / 2, event.clientY - box.top - box.height / 2);
  }, { passive: false });
  let held = null;
  stage.addEventListener("pointerdown", (event) => { held = [event.clientX, event.clientY]; stage.setPointerCapture(event.pointerId); });
  stage.addEventListener("pointermove", (event) => {
    if (!held) return;
    place.x += event.clientX - held[0];
    place.y += event.clientY - held[1];
    held = [event.clientX, event.clientY];
    apply();
  });
  for (const name of ["pointerup", "pointercancel"]) stage.addEventListener(name, () => { held = null; });
  apply();
}

drawCurves(document.getElementById("curves"));
drawEpochs(document.getElementById("epochs"));
drawGallery(document.getElementById("gallery"));
