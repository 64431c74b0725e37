"use strict";
// Replaces the static figures with interactive charts, and adds sorting and copying to tables.
// Without this script the page has everything else.
(() => {
  const root = document.documentElement;
  const data = JSON.parse(document.getElementById("data").textContent);
  const variable = (name) => getComputedStyle(root).getPropertyValue(name).trim();
  const colour = (arm) => variable(`--arm${arm % data.colours}`);
  const short = (v) => Math.abs(v) >= 1e6 || Math.abs(v) < 1e-3 ? v.toExponential(2)
    : v.toLocaleString("en-GB", { maximumSignificantDigits: Math.max(3, Math.ceil(Math.log10(Math.abs(v)))) });
  const hidden = new Set();
  // Many overlapping bands would otherwise hide each other.
  const faint = Math.min(1, 4 / data.arms.length);
  // The arm whose name in the legend is under the pointer.
  let lit = null;
  const drawn = new Map();

  function series(own) {
    const wide = own.kind === "mean";
    const edge = own.kind === "low" || own.kind === "high";
    return {
      label: own.name, spanGaps: true, arm: own.arm, kind: own.kind, show: !hidden.has(own.arm),
      stroke: () => edge ? "transparent" : colour(own.arm),
      alpha: (own.kind === "seed" ? 0.5 : 1) * (lit === null || lit === own.arm ? 1 : 0.2), width: wide ? 2.4 : edge ? 0 : 0.9,
      dash: wide ? data.dashes[own.arm % data.dashes.length] : undefined,
      points: { show: own.kind === "seed" && own.x.length <= 60, size: 4, width: 0, fill: () => colour(own.arm) },
    };
  }

  function bands(list) {
    return list.flatMap((own, i) => own.kind !== "high" ? [] : [{
      series: [i + 1, i + 2], fill: () => `color-mix(in srgb, ${colour(own.arm)} ${lit === own.arm ? 22 : lit === null ? 16 * faint : 0}%, transparent)`,
    }]);
  }

  function overlay(chart) {
    return (u) => {
      const pen = u.ctx, { left, top, width, height } = u.bbox, ratio = devicePixelRatio;
      pen.save();
      pen.beginPath(); pen.rect(left, top, width, height); pen.clip();
      if (chart.line !== null) {
        const y = Math.round(u.valToPos(chart.line, "y", true));
        pen.strokeStyle = variable("--ink"); pen.lineWidth = ratio; pen.setLineDash([4 * ratio, 3 * ratio]);
        pen.beginPath(); pen.moveTo(left, y); pen.lineTo(left + width, y); pen.stroke(); pen.setLineDash([]);
        for (const [arm, value, censored] of chart.dots) {
          if (hidden.has(arm)) continue;
          pen.beginPath(); pen.arc(u.valToPos(value, "x", true), y, 3.6 * ratio, 0, 7);
          pen.fillStyle = censored ? variable("--paper") : colour(arm); pen.strokeStyle = colour(arm);
          pen.fill(); pen.stroke();
        }
      }
      if (chart.mark !== null) {
        const x = Math.round(u.valToPos(chart.mark, "x", true));
        pen.strokeStyle = variable("--ink"); pen.lineWidth = ratio; pen.setLineDash([4 * ratio, 3 * ratio]);
        pen.beginPath(); pen.moveTo(x, top); pen.lineTo(x, top + height); pen.stroke();
      }
      pen.restore();
    };
  }

  function readout(place) {
    return (u) => {
      const i = u.cursor.idx;
      if (i === null || i === undefined) { place.textContent = place.dataset.hint; return; }
      const values = u.series.flatMap((s, n) => {
        if (s.kind !== "mean" || !s.show) return [];
        let k = i;
        while (k > 0 && u.data[n][k] == null) k -= 1;
        return u.data[n][k] == null ? [] : [`${data.arms[s.arm]} ${short(u.data[n][k])}`];
      });
      place.textContent = `${u.axes[0].label} ${short(u.data[0][i])}: ${values.join(" · ")}`;
    };
  }

  // Returns round values of a log scale, from the densest series with at most `most` of them.
  function ticks(low, high, most) {
    const decades = [];
    for (let d = Math.floor(Math.log10(low)); d <= Math.log10(high); d += 1) decades.push(d);
    const of = (m) => decades.flatMap((d) => m.map((k) => Number(`${k}e${d}`))).filter((v) => v >= low && v <= high);
    const all = [[1, 1.2, 1.5, 2, 2.5, 3, 4, 5, 6, 7, 8], [1, 1.5, 2, 3, 5, 7], [1, 2, 5], [1]].map(of);
    return all.find((t) => t.length <= most) ?? all.at(-1);
  }

  function draw(place) {
    const chart = data[place.dataset.chart][place.dataset.axis], note = place.nextElementSibling;
    drawn.get(place)?.destroy();
    const axis = {
      stroke: () => variable("--muted"), grid: { stroke: () => variable("--rule"), width: 1 },
      ticks: { stroke: () => variable("--rule") }, font: "12px system-ui, sans-serif",
      labelFont: "12px system-ui, sans-serif", values: (_, all) => all.map((v) => v === null ? "" : short(v)),
    };
    const all = chart.series.flatMap((s) => s.kind === "seed" || s.kind === "mean" ? s.y : [])
      .concat(chart.line === null ? [] : [chart.line]);
    const low = all.reduce((a, b) => Math.min(a, b)), high = all.reduce((a, b) => Math.max(a, b));
    const room = Math.max(1.08, (high / low) ** 0.05), width = place.clientWidth;
    const log = high / low > 5;
    const options = {
      width, height: Math.max(260, Math.min(420, width * 0.55)), legend: { show: false },
      scales: {
        x: { distr: 3, time: false, dir: place.dataset.chart === "targets" ? -1 : 1, range: (_, min, max) => [min / 1.04, max * 1.04] },
        y: { distr: log ? 3 : 1, range: () => [low / room, high * room] },
      },
      axes: [{
        ...axis, label: chart.x, filter: (_, all) => all, splits: (_, i, min, max) => ticks(min, max, Math.max(3, width / 75)),
      }, {
        ...axis, label: chart.y, size: 60, space: 26,
        ...(log ? { filter: (_, all) => all, splits: (_, i, min, max) => ticks(min, max, 9) } : {}),
      }],
      cursor: { y: false, points: { show: false } },
      series: [{}, ...chart.series.map(series)], bands: bands(chart.series),
      hooks: { draw: [overlay(chart)], setCursor: [readout(note)] },
    };
    const columns = uPlot.join(chart.series.map((s) => [s.x, s.y]));
    place.replaceChildren();
    drawn.set(place, new uPlot(options, columns, place));
  }

  // Moves the cursor by one point; the readout follows it.
  function step(place, by) {
    const u = drawn.get(place), xs = u.data[0], last = xs.length - 1;
    const i = Math.min(last, Math.max(0, (u.cursor.idx ?? (by > 0 ? -1 : last + 1)) + by));
    u.setCursor({ left: u.valToPos(xs[i], "x"), top: u.over.clientHeight / 2 });
  }

  function reachable(place) {
    const picture = place.parentElement.querySelector("svg[aria-label]");
    const flip = place.dataset.chart === "targets" ? -1 : 1;
    place.tabIndex = 0;
    place.setAttribute("role", "img");
    place.setAttribute("aria-label", `${picture.getAttribute("aria-label")}; arrow keys read it point by point`);
    place.nextElementSibling.setAttribute("aria-live", "polite");
    place.addEventListener("keydown", (event) => {
      const by = { ArrowLeft: -flip, ArrowRight: flip }[event.key];
      if (by !== undefined) { step(place, by); event.preventDefault(); }
    });
  }

  const places = [...document.querySelectorAll("[data-chart]")];
  const redraw = () => places.filter((p) => p.clientWidth > 0).forEach(draw);

  function legends() {
    for (const item of document.querySelectorAll("li[data-arm]")) {
      const arm = Number(item.dataset.arm), button = document.createElement("button");
      button.type = "button";
      button.setAttribute("aria-pressed", "true");
      button.append(...item.childNodes);
      button.addEventListener("click", () => {
        hidden.has(arm) ? hidden.delete(arm) : hidden.add(arm);
        document.querySelectorAll(`li[data-arm="${arm}"] button`)
          .forEach((b) => b.setAttribute("aria-pressed", String(!hidden.has(arm))));
        redraw();
      });
      for (const [begin, end] of [["pointerenter", "pointerleave"], ["focus", "blur"]]) {
        button.addEventListener(begin, () => light(arm));
        button.addEventListener(end, () => light(null));
      }
      item.append(button);
    }
  }

  function light(arm) {
    if (lit === arm || data.arms.length < 2) return;
    lit = arm;
    redraw();
  }

  const text = (cell) => (cell.dataset.copy ?? [...cell.childNodes].map((n) => n.textContent.trim()).filter(Boolean).join(" ")).replaceAll("\u00a0", " ");
  const cells = (row) => [...row.cells].map(text);

  // Returns the rows of a table as texts; a group's heading becomes the first column of its rows.
  function rows(table) {
    const groups = table.querySelector("[scope=rowgroup]") !== null;
    let group = "axis";
    return [...table.rows].flatMap((row) => {
      if (row.querySelector("[scope=rowgroup]")) { group = text(row.cells[0]); return []; }
      return [groups ? [group, ...cells(row)] : cells(row)];
    });
  }
  const units = { ms: 1e-3, s: 1, min: 60, h: 3600, d: 86400, k: 1e3, M: 1e6, G: 1e9, T: 1e12, P: 1e15, E: 1e18, Z: 1e21 };
  const quantity = /^(?:[≤≥<>×(\[]\s?)*([-+]?\d+(?:\.\d+)?(?:e[-+]?\d{1,2})?)(?:[×x%]|\s(?:device-)?(ms|min|[shdkMGTPEZ])?(?:FLOP)?)?(?=$|[\s,;:\])])/;

  // Returns the number at the start of a cell in the base unit; null for words.
  function number(t) {
    const found = t.replace(/(\d),(?=\d{3})/g, "$1").replace("−", "-").match(quantity);
    return found ? Number(found[1]) * (units[found[2]] ?? 1) : null;
  }

  function compare(a, b) {
    const x = number(a), y = number(b);
    if (x !== null && y !== null) return x - y;
    return (x === null) - (y === null) || a.localeCompare(b, "en");
  }

  function sortable(table) {
    const heads = [...table.tHead.rows[0].cells], body = table.tBodies[0];
    heads.forEach((head, column) => {
      const button = document.createElement("button");
      button.type = "button";
      button.append(...head.childNodes);
      head.append(button);
      head.setAttribute("aria-sort", "none");
      button.addEventListener("click", () => {
        const down = head.getAttribute("aria-sort") === "ascending", key = (row) => {
          const cell = row.cells[column]; return cell.dataset.sort ?? text(cell);
        };
        heads.forEach((h) => h.setAttribute("aria-sort", "none"));
        head.setAttribute("aria-sort", down ? "descending" : "ascending");
        const rows = [...body.rows].sort((a, b) => compare(key(a), key(b)) * (down ? -1 : 1));
        body.append(...rows);
      });
    });
  }

  // A spreadsheet would run a name that begins like a formula; a number with its unit is none.
  const inert = (t) => /^[=@\t\r]/.test(t) || (/^[+-]/.test(t) && !/^[+-][\d.,\u202f ]+( ?[%×a-zA-Z]+)?$/.test(t)) ? `'${t}` : t;
  const quoted = (t) => /[",\n]/.test(t) ? `"${t.replaceAll('"', '""')}"` : t;
  const latex = (t) => t.replace(/[\\&%$#_{}~^]/g, (c) => ({ "\\": "\\textbackslash{}", "~": "\\textasciitilde{}", "^": "\\textasciicircum{}" })[c] ?? `\\${c}`)
    .replaceAll("×", "$\\times$").replaceAll("∞", "$\\infty$").replaceAll("≤", "$\\le$").replaceAll("–", "--");
  const formats = {
    CSV: (rows) => rows.map((r) => r.map(inert).map(quoted).join(",")).join("\n"),
    Markdown: (rows) => {
      const lines = rows.map((r) => `| ${r.map((t) => t.replaceAll("|", "\\|")).join(" | ")} |`);
      return [lines[0], `|${" --- |".repeat(rows[0].length)}`, ...lines.slice(1)].join("\n");
    },
    LaTeX: (rows) => {
      const lines = rows.map((r) => `${r.map(latex).join(" & ")} \\\\`);
      return [`\\begin{tabular}{${"l".repeat(rows[0].length)}}`, "\\toprule", lines[0], "\\midrule", ...lines.slice(1), "\\bottomrule", "\\end{tabular}"].join("\n");
    },
  };

  async function copy(content) {
    if (navigator.clipboard && isSecureContext) {
      try { await navigator.clipboard.writeText(content); return true; } catch { /* Not allowed: fall back to the older command below. */ }
    }
    const area = document.createElement("textarea");
    area.value = content; area.style.position = "fixed"; area.style.opacity = "0";
    document.body.append(area); area.select();
    const done = document.execCommand("copy");
    area.remove();
    return done;
  }

  function copiable(table) {
    const bar = document.createElement("p");
    bar.className = "copy";
    bar.append("Copy as ");
    for (const [name, format] of Object.entries(formats)) {
      const button = document.createElement("button");
      button.type = "button"; button.textContent = name;
      button.addEventListener("click", async () => {
        const content = format(rows(table));
        button.dataset.copied = content;
        button.textContent = await copy(content) ? `${name} ✓` : `${name}: not allowed`;
        setTimeout(() => { button.textContent = name; }, 1500);
      });
      bar.append(button);
    }
    (table.closest(".scroll") ?? table).after(bar);
  }

  root.classList.add("js");
  legends();
  places.forEach(reachable);
  document.querySelectorAll("table.sort").forEach(sortable);
  document.querySelectorAll("table.copy").forEach(copiable);
  document.querySelectorAll(".tabs > input").forEach((input) => input.addEventListener("change", redraw));
  addEventListener("beforeprint", () => document.querySelectorAll("details").forEach((d) => { d.open = true; }));
  let width = document.body.clientWidth;
  addEventListener("resize", () => {
    if (document.body.clientWidth === width) return;
    width = document.body.clientWidth;
    redraw();
  });
  matchMedia("(prefers-color-scheme: dark)").addEventListener("change", redraw);
  redraw();
})();
