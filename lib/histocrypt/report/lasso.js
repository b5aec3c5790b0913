// A lasso over the picture that a cell of JupyterLab shows: the pointer draws it, and its corners go to the kernel, as
// shares of the picture's width and height, through the hidden text box that ipywidgets keeps in the same cell.
(() => {
  "use strict";
  if (window.histocryptLasso) return;
  window.histocryptLasso = true;
  const style = document.createElement("style");
  style.textContent = ".jp-OutputArea:has(.histocrypt-lasso) .jp-RenderedImage { position: relative; }"
    + ".jp-OutputArea:has(.histocrypt-lasso) .jp-RenderedImage img { cursor: crosshair; touch-action: none; }"
    + ".jp-RenderedImage > svg { position: absolute; inset: 0; width: 100%; height: 100%; pointer-events: none; }";
  document.head.append(style);
  let drawn = null;

  const boxOf = (image) => image.closest(".jp-OutputArea")?.querySelector(".histocrypt-lasso textarea");
  const line = (host) => {
    host.querySelector("svg")?.remove();
    const svg = host.appendChild(document.createElementNS("http://www.w3.org/2000/svg", "svg"));
    return [["#fff", 4], ["#22313a", 2]].map(([ink, width]) => {
      const one = svg.appendChild(document.createElementNS(svg.namespaceURI, "polygon"));
      for (const [name, value] of Object.entries({ fill: "none", stroke: ink, "stroke-width": width })) one.setAttribute(name, value);
      return one;
    });
  };
  const add = (event) => {
    const [x, y] = [event.clientX - drawn.left, event.clientY - drawn.top];
    const last = drawn.corners.at(-1);
    if (last && Math.hypot(x - last[0], y - last[1]) < 3) return;
    drawn.corners.push([x, y]);
    const [dx, dy] = [drawn.left - drawn.host.left, drawn.top - drawn.host.top];
    for (const one of drawn.lines) one.setAttribute("points", drawn.corners.map(([a, b]) => `${a + dx},${b + dy}`).join(" "));
  };

  document.addEventListener("pointerdown", (event) => {
    const image = event.target;
    if (event.button !== 0 || !(image instanceof HTMLImageElement)) return;
    const box = boxOf(image);
    if (!box) return;
    event.preventDefault();
    const { left, top, width, height } = image.getBoundingClientRect();
    const host = image.parentElement.getBoundingClientRect();
    drawn = { box, left, top, width, height, host, lines: line(image.parentElement), corners: [] };
    add(event);
  }, true);
  document.addEventListener("pointermove", (event) => drawn && add(event), true);
  document.addEventListener("dragstart", (event) => drawn && event.preventDefault(), true);
  for (const name of ["pointerup", "pointercancel"]) {
    document.addEventListener(name, () => {
      if (!drawn) return;
      const { box, width, height, corners } = drawn;
      drawn = null;
      // A click takes the lasso away. What the text box holds must differ from last time, or nothing is told.
      const shares = corners.length < 3 ? [] : corners.map(([x, y]) => [x / width, y / height]);
      box.value = JSON.stringify({ corners: shares, at: Date.now() });
      box.dispatchEvent(new Event("change", { bubbles: true }));
    }, true);
  }
})();
