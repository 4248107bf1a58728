// The theme that was chosen, set before anything is painted. A classic script: modules would run too late.
(() => {
  const chosen = (() => {
    try {
      return localStorage.getItem("archfleet-theme");
    } catch {
      return null; // storage may be forbidden; the system's theme is then followed
    }
  })();
  if (chosen === "light" || chosen === "dark") document.documentElement.dataset.theme = chosen;
})();
