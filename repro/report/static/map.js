/* The map: every writer by every later component on a canvas, and the numbers of the one that is chosen. */
const MAP = DATA.map;
if (MAP) {
  const root = document.getElementById("pair-map");
  const canvas = document.getElementById("map-canvas");
  const panel = document.getElementById("map-pair");
  const [stratumBox, valueBox] = [document.getElementById("map-stratum"), document.getElementById("map-value")];
  const [W, C, S] = [MAP.writers.length, MAP.components.length, MAP.sites.length];
  const [REPLICABLE, SPECIFIC, NET, CLAIMED] = MAP.bits;
  // The strongest colours are kept for what is claimed.
  const largest = (name) => Math.max(0, ...Object.values(MAP.strata).flatMap((one) => { const { conditions, [name]: values } = arrays(one); return [...values].filter((v, i) => conditions[i] & CLAIMED).map(Math.abs); }));
  const FULL = { path: Math.max(0.5, Math.ceil(10 * largest("path")) / 10), clean: Math.max(0.5, Math.ceil(10 * largest("clean")) / 10), z: Math.max(30, 10 * Math.ceil(largest("z") / 10)) };
  const SHADES = { light: ["#0072B2", "#F4F5F6", "#D55E00", "#1F2933"], dark: ["#5AB4EE", "#242B32", "#FF9147", "#E6EAEE"] };
  const LEFT = 74, TOP = 46;
  const room = Math.min(620, root.parentElement.clientWidth - LEFT - 8);
  // Few components beside many writers make a tall map: its cells are low, and wide enough to be met.
  const CELL = Math.max(5, Math.min(15, Math.floor(room / C), Math.floor(1600 / W)));
  const WIDE = C < 8 ? Math.min(46, Math.floor(room / C)) : CELL;
  const outcomes = new Map(MAP.confirmed.map(([w, c, outcome, left]) => [`${w} ${c}`, [outcome, left]]));
  const strata = Object.fromEntries(Object.entries(MAP.strata).map(([name, one]) => [name, arrays(one)]));
  let chosen = MAP.start[0] * C + MAP.start[1];

  function bytes(text) { return Uint8Array.from(atob(text), (letter) => letter.charCodeAt(0)); }

  function arrays(one) {
    const named = Object.entries(one).filter(([name]) => name !== "about" && name !== "conditions");
    const numbers = named.map(([name, text]) => [name, new Float32Array(bytes(text).buffer)]);
    return { about: one.about, conditions: bytes(one.conditions), ...Object.fromEntries(numbers) };
  }

  function mix(share, low, middle, high) {
    const end = share < 0 ? low : high;
    const part = Math.min(1, Math.abs(share)) ** 0.7;
    const channels = [1, 3, 5].map((at) => {
      const [a, b] = [middle, end].map((hex) => parseInt(hex.slice(at, at + 2), 16));
      return Math.round(a + (b - a) * part);
    });
    return `rgb(${channels.join(",")})`;
  }

  function paint() {
    const one = strata[stratumBox.value], values = one[valueBox.value], full = FULL[valueBox.value];
    const [low, middle, high, ink] = SHADES[dark.matches ? "dark" : "light"];
    const scale = devicePixelRatio || 1;
    const [wide, tall] = [LEFT + C * WIDE + 4, TOP + W * CELL + 4];
    canvas.width = wide * scale;
    canvas.height = tall * scale;
    canvas.style.width = `${wide}px`;
    canvas.style.height = `${tall}px`;
    const pen = canvas.getContext("2d");
    pen.scale(scale, scale);
    for (let i = 0; i < W * C; i += 1) {
      if (!Number.isFinite(values[i])) continue;
      const [x, y] = [LEFT + (i % C) * WIDE, TOP + Math.floor(i / C) * CELL];
      pen.fillStyle = mix(values[i] / full, low, middle, high);
      pen.fillRect(x, y, WIDE - (WIDE > 7 ? 1 : 0), CELL - (CELL > 7 ? 1 : 0));
      if (!(one.conditions[i] & CLAIMED)) continue;
      pen.fillStyle = ink;
      pen.beginPath();
      pen.arc(x + (WIDE - 1) / 2, y + (CELL - 1) / 2, Math.max(1.4, CELL / 6), 0, 7);
      pen.fill();
    }
    label(pen, ink);
    pen.strokeStyle = ink;
    pen.lineWidth = 2;
    pen.strokeRect(LEFT + (chosen % C) * WIDE - 1.5, TOP + Math.floor(chosen / C) * CELL - 1.5, WIDE + 2, CELL + 2);
    root.style.setProperty("--map-low", low);
    root.style.setProperty("--map-mid", middle);
    root.style.setProperty("--map-high", high);
    document.getElementById("ramp-low").textContent = `−${full} taken back`;
    document.getElementById("ramp-high").textContent = `+${full}`;
  }

  function label(pen, ink) {
    const soft = getComputedStyle(root).getPropertyValue("--soft");
    const every = Math.max(1, Math.ceil(10 / CELL));
    pen.font = '10px "Liberation Sans", Arial, sans-serif';
    pen.textBaseline = "middle";
    pen.textAlign = "right";
    MAP.writers.forEach((name, w) => {
      const here = w === Math.floor(chosen / C);
      if (!here && (w % every || Math.abs(w - Math.floor(chosen / C)) < every)) return;
      pen.fillStyle = here ? ink : soft;
      pen.fillText(name, LEFT - 6, TOP + (w + 0.5) * CELL);
    });
    const across = Math.max(1, Math.ceil(10 / WIDE));
    MAP.components.forEach((name, c) => {
      const here = c === chosen % C;
      if (!here && (c % across || Math.abs(c - (chosen % C)) < across)) return;
      pen.save();
      pen.translate(LEFT + (c + 0.5) * WIDE, TOP - 6);
      pen.rotate(-Math.PI / 2);
      pen.textAlign = "left";
      pen.fillStyle = here ? ink : soft;
      pen.fillText(name, 0, 0);
      pen.restore();
    });
  }

  function element(tag, text, ...inside) {
    const made = document.createElement(tag);
    if (text) made.textContent = text;
    made.append(...inside);
    return made;
  }

  const shown = (value, digits = 3) => (Number.isFinite(value) ? value.toFixed(digits).replace(/^-/, "−") : "–");

  function describe() {
    const one = strata[stratumBox.value];
    const [w, c] = [Math.floor(chosen / C), chosen % C];
    const [writer, component] = [MAP.writers[w], MAP.components[c]];
    const title = element("h3", `${writer} → ${component}`);
    if (!Number.isFinite(one.path[chosen])) {
      panel.replaceChildren(title, element("p", `${component} writes before ${writer}, or beside it: it does not read it.`));
      return;
    }
    const list = element("dl");
    const spread = one.low ? ` (quartiles ${shown(one.low[chosen])} to ${shown(one.high[chosen])})` : "";
    const facts = [
      ["path share", shown(one.path[chosen]) + spread],
      ["beyond the median writer", shown(one.path[chosen] - one.usual[c])],
      ["clean share", shown(one.clean[chosen])],
      ["z against decoys", shown(one.z[chosen], 1)],
      ["adjusted p", one.p[chosen] < 1e-6 ? "below 1e−6" : Number.isFinite(one.p[chosen]) ? one.p[chosen].toPrecision(2) : "– (one observation)"],
    ];
    for (const [name, text] of facts) list.append(element("dt", name), element("dd", text));
    const met = one.conditions[chosen];
    const conditions = element("ul");
    for (const [bit, words] of [[REPLICABLE, "replicable over prompts"], [SPECIFIC, "beyond decoys and the median writer"], [NET, "opposing on the whole: a negative clean share"]]) {
      conditions.append(element("li", met & bit ? `✓ ${words}` : `✗ not ${words}`));
    }
    const [outcome, left] = outcomes.get(`${writer} ${component}`) ?? [];
    const tried = outcome ? `, by real forwards: ${outcome}${left !== null && left <= 1 ? `, ${Math.round(100 * Math.max(left, 0))} % left after ablation` : ""}` : "";
    conditions.append(element("li", met & CLAIMED ? `Claimed${tried}.` : `Not claimed${tried}.`));
    const where = element("p", `${one.about[0].toUpperCase()}${one.about.slice(1)}. ${MAP.prompts} prompts.`);
    panel.replaceChildren(title, where, list, conditions, course(one, w, c), element("p", `Presence of ${writer} along the stream; dashed: ${component}.`));
  }

  function course(one, w, c) {
    const values = [...one.presence.slice(w * S, (w + 1) * S)];
    const known = values.filter(Number.isFinite);
    const [top, low] = [Math.max(1.2, ...known), Math.min(0, ...known)];
    const [x, y] = [(i) => 30 + (i * 300) / Math.max(1, S - 1), (v) => 10 + ((top - v) * 100) / (top - low)];
    const made = (tag, attributes) => {
      const node = document.createElementNS("http://www.w3.org/2000/svg", tag);
      for (const [name, value] of Object.entries(attributes)) node.setAttribute(name, value);
      return node;
    };
    const svg = made("svg", { viewBox: "0 0 340 130", class: "presence", role: "img", "aria-label": `Presence of ${MAP.writers[w]}: ${values.map((v, i) => `${MAP.sites[i]} ${shown(v, 2)}`).join(", ")}` });
    for (const v of y(0) - y(1) > 14 ? [0, 1] : [0]) {
      const tick = made("text", { class: "tick", x: 22, y: y(v) + 4, "text-anchor": "end" });
      tick.textContent = v;
      svg.append(made("line", { class: "grid", x1: 30, x2: 330, y1: y(v), y2: y(v) }), tick);
    }
    const at = x(MAP.steps[1][c] - 0.5);
    svg.append(made("line", { class: "grid", x1: at, x2: at, y1: 8, y2: 112, "stroke-dasharray": "3 3", style: "stroke:var(--eraser);stroke-width:2" }));
    svg.append(made("polyline", { class: "line", points: values.map((v, i) => (Number.isFinite(v) ? `${x(i)},${y(v)}` : "")).join(" ") }));
    for (const [i, anchor] of [[0, "start"], [S - 1, "end"]]) {
      const tick = made("text", { class: "tick", x: x(i), y: 126, "text-anchor": anchor });
      tick.textContent = MAP.sites[i];
      svg.append(tick);
    }
    return svg;
  }

  function choose(index) {
    chosen = Math.max(0, Math.min(W * C - 1, index));
    paint();
    describe();
    const [at, view] = [TOP + Math.floor(chosen / C) * CELL, canvas.parentElement];
    if (at < view.scrollTop + TOP || at > view.scrollTop + view.clientHeight - 3 * CELL) view.scrollTop = at - view.clientHeight / 2;
  }

  canvas.addEventListener("pointerdown", (event) => {
    const box = canvas.getBoundingClientRect();
    const [c, w] = [Math.floor((event.clientX - box.left - LEFT) / WIDE), Math.floor((event.clientY - box.top - TOP) / CELL)];
    if (c >= 0 && c < C && w >= 0 && w < W) choose(w * C + c);
  });
  canvas.addEventListener("pointermove", (event) => {
    const box = canvas.getBoundingClientRect();
    const [c, w] = [Math.floor((event.clientX - box.left - LEFT) / WIDE), Math.floor((event.clientY - box.top - TOP) / CELL)];
    const value = strata[stratumBox.value][valueBox.value][w * C + c];
    canvas.title = c >= 0 && c < C && w >= 0 && w < W && Number.isFinite(value) ? `${MAP.writers[w]} → ${MAP.components[c]}: ${shown(value)}` : "";
  });
  canvas.addEventListener("keydown", (event) => {
    const [down, right] = { ArrowLeft: [0, -1], ArrowRight: [0, 1], ArrowUp: [-1, 0], ArrowDown: [1, 0] }[event.key] ?? [0, 0];
    if (!down && !right) return;
    event.preventDefault();
    // No step leaves the map at its sides.
    const [w, c] = [Math.floor(chosen / C) + down, (chosen % C) + right];
    if (w >= 0 && w < W && c >= 0 && c < C) choose(w * C + c);
  });
  for (const [name, one] of Object.entries(strata)) stratumBox.append(new Option(one.about, name, name === "rest", name === "rest"));
  for (const box of [stratumBox, valueBox]) box.addEventListener("change", () => choose(chosen));
  dark.addEventListener("change", paint);
  root.hidden = false;
  choose(chosen);
}
