// The viewer of the report: draws the values embedded in the page. No library, no network; text is set as text only.
(() => {
  "use strict";
  const at = (id) => document.getElementById(`viewer-${id}`);
  const data = JSON.parse(at("data").textContent);
  const sections = new Map(data.sections.map((one) => [one.id, one]));
  const picked = { ...data.start };
  const pictures = new Map();
  let spot = -1;
  let addressProblem = "";

  // ---- values: 16-bit little-endian steps between low and high
  const unpack = (text, low, high) => {
    const bytes = Uint8Array.from(atob(text), (c) => c.charCodeAt(0));
    const view = new DataView(bytes.buffer);
    const step = (high - low) / data.steps;
    return Array.from({ length: bytes.length / 2 }, (_, i) => low + step * view.getUint16(2 * i, true));
  };
  const number = (value, digits = 2, sign = false) => {
    const text = Math.abs(value).toFixed(digits);
    const zero = Number(text) === 0;
    return (zero ? "" : value < 0 ? "\u2212" : sign ? "+" : "") + text;
  };
  const colour = (stops, share) => {
    const place = Math.min(1, Math.max(0, share)) * (stops.length - 1);
    const i = Math.min(Math.floor(place), stops.length - 2);
    const mix = stops[i].map((c, k) => Math.round(c + (place - i) * (stops[i + 1][k] - c)));
    return `rgb(${mix.join(",")})`;
  };

  let kept = {};
  const current = () => {
    const key = [picked.model, picked.section, picked.gene].join("\n");
    if (kept.key !== key) kept = { key, ...unpacked() };
    return kept;
  };
  const unpacked = () => {
    const section = sections.get(picked.section);
    const gene = section.genes[picked.gene];
    const mine = gene.models && gene.models[picked.model];
    if (!mine) return { section, why: gene.missing[picked.model] || "There is nothing to show here." };
    const measured = unpack(gene.true, gene.low, gene.high);
    const predicted = unpack(mine.predicted, gene.low, gene.high);
    const residual = predicted.map((value, i) => value - measured[i]);
    return { section, mine, values: { true: measured, predicted, residual }, absent: new Set(mine.absent) };
  };

  // ---- pictures and maps
  const pictureOf = (section) => {
    if (!section.picture) return null;
    if (!pictures.has(section.id)) {
      const image = new Image();
      image.onload = draw;
      image.src = section.picture.source;
      pictures.set(section.id, image);
    }
    const image = pictures.get(section.id);
    return image.complete ? image : null;
  };
  const paint = (canvas, section, opacity, values, absent, shade) => {
    const [left, top, right, bottom] = section.window;
    const box = canvas.getBoundingClientRect();
    const dense = Math.min(window.devicePixelRatio || 1, 3);
    canvas.style.aspectRatio = `${right - left} / ${bottom - top}`;
    canvas.width = Math.max(1, Math.round((box.width || 260) * dense));
    canvas.height = Math.max(1, Math.round((canvas.width * (bottom - top)) / (right - left)));
    const scale = canvas.width / (right - left);
    const pen = canvas.getContext("2d");
    pen.fillStyle = "#fff";
    pen.fillRect(0, 0, canvas.width, canvas.height);
    const image = pictureOf(section);
    if (image) {
      pen.globalAlpha = opacity;
      pen.drawImage(image, -left * scale, -top * scale, section.picture.width * scale, section.picture.height * scale);
      pen.globalAlpha = 1;
    }
    const real = at("size").value === "true" && section.diameter;
    const radius = ((real || data.touching * section.pitch) / 2) * scale;
    pen.lineWidth = 0.5 * dense;
    pen.strokeStyle = "#84929a";
    pen.globalAlpha = Number(at("alpha").value) / 100;
    section.spots.forEach((_, i) => {
      if (!values || absent.has(i)) return;
      pen.beginPath();
      pen.arc((section.x[i] - left) * scale, (section.y[i] - top) * scale, radius, 0, 2 * Math.PI);
      pen.fillStyle = shade(values[i]);
      pen.fill();
      pen.stroke();
    });
    pen.globalAlpha = 1;
    if (spot >= 0) {
      for (const [ink, width] of [["#fff", 5], ["#22313a", 2.2]]) {
        pen.beginPath();
        pen.arc((section.x[spot] - left) * scale, (section.y[spot] - top) * scale, radius + 2 * dense, 0, 2 * Math.PI);
        pen.strokeStyle = ink;
        pen.lineWidth = width * dense;
        pen.stroke();
      }
    }
  };

  const scaleOf = (name, stops, low, high, shown) => {
    const signed = name === "residual";
    at(`${name}-low`).textContent = shown ? number(low, 2, signed) : "";
    at(`${name}-high`).textContent = shown ? number(high, 2, signed) : "";
    at(`${name}-bar`).style.background = `linear-gradient(to right, ${stops.map((c) => `rgb(${c.join(",")})`).join(",")})`;
  };
  const title = (list, id, key) => list.find((one) => one.id === id)[key];

  function draw() {
    const { section, mine, values, absent, why } = current();
    at("size").disabled = !section.diameter;
    const gene = title(data.genes, picked.gene, "name");
    const model = title(data.models, picked.model, "title");
    if (absent && absent.has(spot)) spot = -1;
    const opacity = Number(at("opacity").value) / 100;
    const [least, most, reach] = mine ? mine.limits : [0, 1, 1];
    paint(at("tissue"), section, 1, null, new Set(), null);
    const shades = {
      true: (v) => colour(data.colours.values, (v - least) / (most - least)),
      predicted: (v) => colour(data.colours.values, (v - least) / (most - least)),
      residual: (v) => colour(data.colours.residuals, (v + reach) / (2 * reach)),
    };
    for (const name of Object.keys(shades)) {
      paint(at(name), section, opacity, mine && values[name], absent || new Set(), shades[name]);
      const residual = name === "residual";
      const stops = data.colours[residual ? "residuals" : "values"];
      scaleOf(name, stops, residual ? -reach : least, residual ? reach : most, Boolean(mine));
    }
    const where = `${gene} in section ${section.id}`;
    at("tissue").setAttribute("aria-label", `H&E of section ${section.id}`);
    at("true").setAttribute("aria-label", `Measured ${where}, colours from ${number(least)} to ${number(most)}`);
    at("predicted").setAttribute("aria-label", `${where} predicted by ${model}, on the same colours`);
    at("residual").setAttribute("aria-label", `Predicted less measured ${where}, from ${number(-reach)} to ${number(reach)}`);
    at("length").style.width = `${(100 * section.bar.length) / (section.window[2] - section.window[0])}%`;
    at("length-label").textContent = section.bar.label;
    at("said").textContent = [
      addressProblem,
      why || `${where} of patient ${section.patient}: Pearson\u2019s r = ${mine.r} over ${section.spots.length - absent.size} spots, ${data.units}, predicted by ${model}.`,
      mine ? mine.notes : "",
    ].filter(Boolean).join(" ");
    at("spot").textContent = !mine
      ? ""
      : spot < 0
        ? "Point at a spot, or go there with the arrow keys, to read its values."
        : `Spot ${section.spots[spot]}: measured ${number(values.true[spot])}, predicted ${number(values.predicted[spot])}, difference ${number(values.residual[spot], 2, true)}.`;
  }

  // ---- picking: controls, spots, and the address (#viewer=model,section,gene,spot)
  const fill = (select, list, label) => {
    select.replaceChildren();
    const groups = new Map();
    for (const one of list) {
      const option = document.createElement("option");
      option.value = one.id;
      option.textContent = label(one) + (one.doubted ? " (not trusted)" : "");
      if (one.doubted) option.style.color = "#666";
      if (!groups.has(Boolean(one.marker))) groups.set(Boolean(one.marker), []);
      groups.get(Boolean(one.marker)).push(option);
    }
    if (!groups.has(true)) return select.append(...(groups.get(false) || []));
    for (const [marker, name] of [[true, "Named in the study"], [false, data.genes.some((one) => one.doubted) ? "Trusted first, then best to worst predicted" : "Best to worst predicted"]]) {
      const group = document.createElement("optgroup");
      group.label = name;
      group.append(...(groups.get(marker) || []));
      select.append(group);
    }
    return undefined;
  };
  const address = () => {
    const parts = [picked.model, picked.section, picked.gene];
    if (spot >= 0) parts.push(sections.get(picked.section).spots[spot]);
    try {
      history.replaceState(null, "", `#viewer=${parts.map(encodeURIComponent).join(",")}`);
    } catch {
      // Some readers open the page where addresses cannot change; the view works all the same.
    }
  };
  const choose = (index) => {
    if (index === spot) return;
    spot = index;
    draw();
  };
  const nearest = (section, x, y, reach, absent) => {
    let best = -1;
    let least = reach;
    section.spots.forEach((_, i) => {
      const away = Math.hypot(section.x[i] - x, section.y[i] - y);
      if (away < least && !absent.has(i)) [best, least] = [i, away];
    });
    return best;
  };
  const step = (dx, dy) => {
    const { section, mine, absent } = current();
    if (!mine) return;
    if (spot < 0) return choose(nearest(section, (section.window[0] + section.window[2]) / 2, (section.window[1] + section.window[3]) / 2, Infinity, absent));
    let best = spot;
    let least = Infinity;
    section.spots.forEach((_, i) => {
      const [x, y] = [section.x[i] - section.x[spot], section.y[i] - section.y[spot]];
      const along = x * dx + y * dy;
      const across = Math.abs(x * dy) + Math.abs(y * dx);
      if (i !== spot && !absent.has(i) && along > across && along + 2 * across < least) [best, least] = [i, along + 2 * across];
    });
    choose(best);
  };
  const read = () => {
    if (!location.hash.startsWith("#viewer=")) return false;
    addressProblem = "";
    let parts = [];
    try {
      parts = location.hash.slice(8).split(",").map(decodeURIComponent);
    } catch {
      addressProblem = "The address of this page is not readable.";
    }
    const known = { model: data.models, section: data.sections, gene: data.genes };
    const called = { model: "model", section: "section", gene: data.noun };
    Object.keys(known).forEach((what, i) => {
      if (!parts[i]) return;
      const found = known[what].find((one) => one.id === parts[i] || one.name === parts[i]);
      if (found) picked[what] = found.id;
      else addressProblem += `This page holds no ${called[what]} called ${parts[i]}. `;
    });
    spot = parts[3] ? sections.get(picked.section).spots.indexOf(parts[3]) : -1;
    if (parts[3] && spot < 0) addressProblem += `There is no spot ${parts[3]} in this section. `;
    return true;
  };
  const show = () => {
    at("find").value = at("found").textContent = "";
    fill(at("gene"), data.genes, (one) => one.name);
    for (const what of ["model", "section", "gene"]) at(what).value = picked[what];
    draw();
  };

  fill(at("model"), data.models, (one) => one.title);
  fill(at("section"), data.sections, (one) => `${one.id} (${one.patient})`);
  for (const what of ["model", "section", "gene"]) {
    at(what).addEventListener("change", (event) => {
      picked[what] = event.target.value;
      if (what === "section") spot = -1;
      addressProblem = "";
      draw();
      address();
    });
  }
  at("find").addEventListener("input", () => {
    const typed = at("find").value.trim().toLowerCase();
    const found = data.genes.filter((one) => `${one.name}\n${one.id}`.toLowerCase().includes(typed));
    fill(at("gene"), found, (one) => one.name);
    at("found").textContent = !typed ? "" : found.length
      ? `${found.length} of the ${data.genes.length} ${data.noun}s in this page.`
      : `No ${data.noun} in this page has ${typed} in its name.`;
    if (found.length && !found.some((one) => one.id === picked.gene)) {
      picked.gene = found[0].id;
      addressProblem = "";
      draw();
      address();
    }
    at("gene").value = picked.gene;
  });
  for (const what of ["size", "opacity", "alpha"]) at(what).addEventListener("input", draw);
  for (const name of ["tissue", "true", "predicted", "residual"]) {
    at(name).addEventListener("pointermove", (event) => {
      const { section, mine, absent } = current();
      if (!mine) return;
      const box = at(name).getBoundingClientRect();
      const unit = (section.window[2] - section.window[0]) / box.width;
      const x = section.window[0] + (event.clientX - box.left) * unit;
      const y = section.window[1] + (event.clientY - box.top) * unit;
      choose(nearest(section, x, y, 0.7 * section.pitch, absent));
    });
    at(name).addEventListener("click", address);
  }
  at("maps").addEventListener("keydown", (event) => {
    const way = { ArrowLeft: [-1, 0], ArrowRight: [1, 0], ArrowUp: [0, -1], ArrowDown: [0, 1] }[event.key];
    if (event.key === "Escape") choose(-1);
    else if (way) step(...way);
    else return;
    event.preventDefault();
    address();
  });
  window.addEventListener("resize", draw);

  at("still").hidden = true;
  at("live").hidden = false;

  // ---- tabs: the report, and the viewer. Without scripts, the viewer stands at the end of the page.
  const tabs = { report: document.getElementById("tab-report"), viewer: document.getElementById("tab-viewer") };
  const panels = { report: document.getElementById("report"), viewer: document.getElementById("viewer") };
  const open = (name) => {
    for (const one of Object.keys(tabs)) {
      tabs[one].setAttribute("aria-selected", String(one === name));
      tabs[one].tabIndex = one === name ? 0 : -1;
      panels[one].hidden = one !== name;
    }
    document.getElementById("summary").hidden = name !== "report";
    if (name === "viewer") draw();
  };
  for (const name of Object.keys(tabs)) {
    panels[name].setAttribute("role", "tabpanel");
    tabs[name].addEventListener("click", () => open(name));
    tabs[name].addEventListener("keydown", (event) => {
      if (!["ArrowLeft", "ArrowRight"].includes(event.key)) return;
      const other = name === "report" ? "viewer" : "report";
      open(other);
      tabs[other].focus();
    });
  }
  const follow = () => {
    const mine = read();
    open(mine || location.hash === "#viewer" ? "viewer" : "report");
    show();
    const target = mine ? null : document.getElementById(location.hash.slice(1));
    if (mine) tabs.viewer.scrollIntoView({ behavior: "instant" });
    else if (target) target.scrollIntoView({ behavior: "instant" });
  };
  tabs.report.parentElement.hidden = false;
  window.addEventListener("hashchange", follow);
  follow();
})();
