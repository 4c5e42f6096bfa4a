/* Charts: drawn when they come near, in the colours of the reader's scheme; hover; saving. */
// What is large stands on the page as gzip in base64. A browser that cannot unpack it shows the still drawings.
async function unpacked(id) {
  const bytes = Uint8Array.from(atob(document.getElementById(id).textContent), (letter) => letter.charCodeAt(0));
  return new Response(new Blob([bytes]).stream().pipeThrough(new DecompressionStream("gzip"))).text();
}
if (!window.DecompressionStream) return;
const DATA = JSON.parse(await unpacked("data"));
const dark = matchMedia("(prefers-color-scheme: dark)");
// The charts' colours on a dark page. They keep their hue, so a colour means the same thing in both.
const ON_DARK = {
  "1F2933": "#E6EAEE", "5F6B78": "#A3AFBB", E6E9ED: "#2B333B", FFFFFF: "#14181C", FAFAF8: "#20272D",
  D55E00: "#FF9147", "0072B2": "#5AB4EE", A3ACB7: "#6B7682", "3E4C5E": "#B4C2D3", "9A6700": "#E9B949",
  D9DDE3: "#3A444E", "7A6FB0": "#A79CDB", "8C7B6B": "#AE9E8E", "6E8B3D": "#95B45C", "2C6FAE": "#57A5E6", E8873A: "#A65B20",
  "5E2A0C": "#FFDDBF", B9C0C9: "#4A535C", D5E2EE: "#22384B", "8DB2D3": "#37698F", "3B7BB0": "#5AA5DC", "123A5E": "#C5E3FA",
};
const NOTHING = new Set(["", "NaN", "null", "undefined", "–"]);
const WORDS = { lower: 0, upper: 1 };
const drawn = new Map();

function coloured(spec, onDark) {
  const text = JSON.stringify(spec);
  return JSON.parse(onDark ? text.replace(/#([0-9A-Fa-f]{6})\b/g, (all, hex) => ON_DARK[hex.toUpperCase()] ?? all) : text, tabled);
}

// Vega reads tables written as text by compiling code, which this page's policy forbids; they hold numbers alone.
function tabled(key, value) {
  if (value?.format?.type !== "csv" || typeof value.values !== "string") return value;
  const [head, ...lines] = value.values.split("\n").map((line) => line.split(","));
  return { name: value.name, values: lines.map((cells) => Object.fromEntries(head.map((name, i) => [name, Number(cells[i])]))) };
}

// Vega is read when the first chart needs it, so that the page is there before a megabyte of library.
let ready = null;
function library() {
  ready ??= unpacked("vega").then((code) => {
    const script = document.createElement("script");
    // In a scope of its own: the names in it are the library's business.
    script.textContent = `(() => {${code}\n})();`;
    document.head.append(script);
    return window.vegaEmbed;
  });
  return ready;
}

function embed(node, spec, chart) {
  const options = { renderer: "svg", mode: "vega-lite", actions: false, ast: true, tooltip: (...told) => hover(chart, ...told) };
  return library().then((make) => make(node, spec, options));
}

async function draw(place) {
  const id = place.dataset.chart;
  const chart = DATA.charts.by_id[id];
  const [still, live] = [place.querySelector(".still"), place.querySelector(".live")];
  const fresh = document.createElement("div");
  const result = await embed(fresh, coloured(chart.spec, dark.matches), chart);
  live.replaceChildren(fresh);
  live.hidden = false;
  still.hidden = true;
  // The group around it names the chart; one name is enough.
  live.querySelector("svg")?.setAttribute("aria-hidden", "true");
  place.dataset.drawn = dark.matches ? "dark" : "light";
  drawn.get(id)?.finalize();
  drawn.set(id, result);
}

function hover(chart, handler, event, item, value) {
  const tip = document.getElementById("tip");
  const rows = value && typeof value === "object" ? Object.entries(value) : [];
  const told = rows.filter(([name, text]) => !NOTHING.has(String(text)) && name !== "undefined");
  tip.hidden = told.length === 0;
  if (tip.hidden) return;
  const table = document.createElement("table");
  for (const [name, text] of told) {
    const row = table.insertRow();
    const head = document.createElement("th");
    head.textContent = name in WORDS ? chart.quantiles[WORDS[name]] : name;
    row.append(head);
    row.insertCell().textContent = String(text).replace(/^-/, "−");
  }
  const sample = document.createElement("p");
  const lost = rows.find(([name]) => name === "undefined")?.[1];
  sample.textContent = `n: ${chart.sample}${lost && lost !== "0" ? `, ${lost} undefined` : ""}`;
  tip.replaceChildren(table, sample);
  const { clientX: x, clientY: y } = event;
  const { width, height } = tip.getBoundingClientRect();
  tip.style.left = `${Math.max(4, Math.min(x + 14, innerWidth - width - 8))}px`;
  tip.style.top = `${y + 18 + height > innerHeight ? Math.max(4, y - height - 12) : y + 18}px`;
}

async function save(id, kind) {
  const chart = DATA.charts.by_id[id];
  if (kind === "csv") return offer(new Blob([DATA.charts.csv[chart.csv]], { type: "text/csv" }), `${id}.csv`);
  // Saved in the colours of paper, whatever the page looks like.
  const away = document.createElement("div");
  const paper = { ...chart.spec, config: { ...chart.spec.config, background: "#FFFFFF" } };
  const { view } = await embed(away, coloured(paper, false), chart);
  if (kind === "svg") offer(new Blob([await view.toSVG()], { type: "image/svg+xml" }), `${id}.svg`);
  else (await view.toCanvas(2)).toBlob((blob) => offer(blob, `${id}.png`));
  view.finalize();
}

function offer(blob, name) {
  const link = document.createElement("a");
  link.href = URL.createObjectURL(blob);
  link.download = name;
  link.click();
  setTimeout(() => URL.revokeObjectURL(link.href), 10000);
}

const near = new IntersectionObserver((seen) => {
  for (const one of seen.filter((entry) => entry.isIntersecting)) {
    near.unobserve(one.target);
    draw(one.target);
  }
}, { rootMargin: "500px" });
for (const place of document.querySelectorAll("[data-chart]")) {
  near.observe(place);
  place.querySelector(".save").hidden = false;
  for (const button of place.querySelectorAll("[data-save]")) {
    button.setAttribute("aria-label", `Save ${place.dataset.chart} as ${button.dataset.save.toUpperCase()}`);
    button.addEventListener("click", () => save(place.dataset.chart, button.dataset.save));
  }
}
dark.addEventListener("change", () => document.querySelectorAll("[data-drawn]").forEach(draw));
addEventListener("scroll", () => { document.getElementById("tip").hidden = true; }, { passive: true });
addEventListener("beforeprint", () => document.querySelectorAll("[data-chart]:not([data-drawn])").forEach(draw));
addEventListener("keydown", (event) => { if (event.key === "Escape") document.getElementById("tip").hidden = true; });
