() => {
  // The stepper by keyboard: arrow keys go to the step before or after, unless a control uses them itself.
  const slider = () => document.querySelector("#step input[type=range]");
  const go = (to) => {
    const range = slider();
    if (!range || range.disabled || to < Number(range.min) || to > Number(range.max)) return false;
    Object.getOwnPropertyDescriptor(HTMLInputElement.prototype, "value").set.call(range, to);
    range.dispatchEvent(new Event("input", { bubbles: true }));
    range.dispatchEvent(new Event("change", { bubbles: true }));
    return true;
  };
  document.addEventListener("keydown", (event) => {
    const by = { ArrowLeft: -1, ArrowRight: 1 }[event.key];
    if (!by || event.ctrlKey || event.metaKey || event.altKey || !slider() || !slider().offsetParent) return;
    if (event.target.closest("input, textarea, select, [role=listbox], [contenteditable], .cm-editor, canvas")) return;
    if (go(Number(slider().value) + by)) event.preventDefault();
  });

  // Play: from the coarse mask to the last step, one after the other.
  let playing = null;
  const stop = () => { clearInterval(playing); playing = null; };
  document.addEventListener("click", (event) => {
    if (!event.target.closest("#play")) return;
    if (playing) return stop();
    go(0);
    playing = setInterval(() => { if (!go(Number(slider()?.value) + 1)) stop(); }, 900);
  });

  // The large pictures' alternative text: what their label and the words under them say.
  const describe = () => {
    for (const who of ["query", "support"]) {
      const view = document.querySelector(`#${who}-view`);
      const words = document.querySelector(`#${who}-view-note .words`);
      const text = [view?.querySelector("label")?.innerText, words?.innerText].filter(Boolean).join(": ").trim();
      for (const image of view?.querySelectorAll("img") ?? []) if (image.alt !== text) image.alt = text;
    }
  };

  // The filmstrip's step that is shown: marked for who cannot see the frame around it, and scrolled into view.
  let marked = null;
  const mark = () => {
    const strip = document.querySelector("#strip .strip");
    const now = strip?.querySelector(`[data-step="${strip.closest("[data-now]").dataset.now}"]`);
    if (!now || (now === marked && now.hasAttribute("aria-current"))) return;
    strip.querySelectorAll("[aria-current]").forEach((step) => step.removeAttribute("aria-current"));
    now.setAttribute("aria-current", "step");
    strip.scrollLeft = now.offsetLeft - (strip.clientWidth - now.clientWidth) / 2;
    marked = now;
  };

  // What the status line says is said aloud.
  const announce = () => document.querySelector("#status")?.setAttribute("aria-live", "polite");

  const changed = () => { describe(); mark(); announce(); };
  new MutationObserver(changed).observe(document.body, {
    childList: true, subtree: true, characterData: true, attributes: true, attributeFilter: ["data-now"],
  });
}
