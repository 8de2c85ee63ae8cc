// A click on a picture asks for a pixel; a rectangle drawn on what a modality shows is a gap.
let start = null, box = null;
const pixel = (image, event) => {
  const place = image.getBoundingClientRect();
  const along = (at, from, length, count) => Math.max(0, Math.min(count - 1, Math.floor((at - from) / length * count)));
  return [along(event.clientX, place.left, place.width, image.naturalWidth),
          along(event.clientY, place.top, place.height, image.naturalHeight)];
};
element.addEventListener("pointerdown", (event) => {
  if (event.button !== 0 || event.target.tagName !== "IMG") return;
  start = {image: event.target, at: pixel(event.target, event), x: event.clientX, y: event.clientY};
});
window.addEventListener("pointermove", (event) => {
  if (!start || !start.image.dataset.modality) return;
  if (!box && Math.hypot(event.clientX - start.x, event.clientY - start.y) < 5) return;
  if (!box) box = start.image.parentNode.appendChild(Object.assign(document.createElement("div"), {className: "drawn"}));
  const place = start.image.getBoundingClientRect();
  const [left, right] = [start.x, event.clientX].sort((a, b) => a - b).map((x) => x - place.left);
  const [top, bottom] = [start.y, event.clientY].sort((a, b) => a - b).map((y) => y - place.top);
  Object.assign(box.style, {left: `${left}px`, top: `${top}px`, width: `${right - left}px`, height: `${bottom - top}px`});
});
window.addEventListener("pointerup", (event) => {
  if (!start) return;
  const {image, at} = start, end = pixel(image, event);
  if (box) {
    trigger("input", {modality: image.dataset.modality, corners: [...at, ...end]});
  } else if (event.target === image) {
    const sight = image.closest(".sight");
    sight.classList.remove("unmarked");
    sight.style.setProperty("--x", `${100 * (at[0] + 0.5) / image.naturalWidth}%`);
    sight.style.setProperty("--y", `${100 * (at[1] + 0.5) / image.naturalHeight}%`);
    trigger("click", {point: at});
  }
  box?.remove();
  start = box = null;
});
window.addEventListener("pointercancel", () => { box?.remove(); start = box = null; });
element.addEventListener("change", () => trigger("select"));  // a box or circle in a table of dates
new MutationObserver((changes) => {  // one that somebody clicked does not follow its attribute
  for (const {target} of changes) target.checked = target.hasAttribute("checked");
}).observe(element, {subtree: true, attributes: true, attributeFilter: ["checked"]});
