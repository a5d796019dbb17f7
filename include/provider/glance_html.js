"use strict";
(() => {
  const root = document.documentElement;
  // Airflow's own document, where this page is in its frame.
  let outside = null;
  try {
    outside = window.parent === window ? null : window.parent.document;
  } catch {
    // Somebody else's frame.
  }

  if (outside) {
    const look = () => {
      const { classList } = outside.documentElement;
      if (classList.contains("dark") || classList.contains("light")) {
        root.dataset.theme = classList.contains("dark") ? "dark" : "light";
      }
    };
    look();
    new MutationObserver(look).observe(outside.documentElement, { attributeFilter: ["class"] });
    // The frame may not leave itself, so Airflow's document follows links to Airflow's pages.
    document.addEventListener("click", (event) => {
      const link = event.target.closest("a[data-top]");
      if (!link || event.button || event.ctrlKey || event.metaKey || event.shiftKey || event.altKey) return;
      event.preventDefault();
      const there = outside.createElement("a");
      there.href = link.href;
      outside.body.append(there);
      there.click();
      there.remove();
    });
  }

  const standing = document.getElementById("standing");
  const field = document.getElementById("q");
  const asked = field && field.value;
  const ask = async () => {
    let next = 3000;
    try {
      const reply = await fetch("?standing=1", { headers: { Accept: "application/json" } });
      const { building, text } = await reply.json();
      if (text !== standing.textContent) standing.textContent = text;
      if (!building) {
        if (!field || (field.value === asked && document.activeElement !== field)) window.location.reload();
        return;
      }
    } catch {
      next = 15000;
    }
    window.setTimeout(ask, next);
  };
  if (standing && "building" in standing.dataset) window.setTimeout(ask, 2000);
})();
