// The form works without this; it says why a token was not taken, and where to go on.
(() => {
  const asked = new URLSearchParams(location.search);
  const message = document.getElementById("message");
  if (asked.has("failed")) message.textContent = "That token was not accepted: it may be mistyped, expired or revoked.";
  if (asked.has("limited")) message.textContent = "Too many tries. Wait a minute, then try again.";
  message.hidden = message.textContent === "";
  document.querySelector("form").addEventListener("submit", () => {
    try {
      localStorage.setItem("archfleet-signed-in", "yes"); // pages then offer to sign out; the cookie is none of a script's business
    } catch {
      // storage may be forbidden; the session ends by itself
    }
  });
  const next = asked.get("next");
  if (next && next.startsWith("/") && !next.startsWith("//")) document.getElementById("next").value = next;
})();
