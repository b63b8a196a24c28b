(() => {
  "use strict";
  const $ = (id) => document.getElementById(id);
  const say = (text) => { $("said").textContent = text; };
  document.documentElement.classList.add("js");

  // Filter and sort live in the URL's hash, so a link shows what its sender saw; a hash without "=" is an anchor.
  const state = { q: "", outcome: "", sort: "", dir: "" };
  const table = $("examples-table");
  const body = table && table.tBodies[0];
  // The worst rows stand open, the others in folds. A filter or an order is over all of them: they gather in the first
  // table, and go home when both are gone.
  const folds = [...document.querySelectorAll("details.fold")];
  const bodies = body ? [body, ...folds.map((fold) => fold.querySelector("tbody"))] : [];
  const rows = bodies.flatMap((home) => [...home.rows].map((row) => ({ row, home, text: null, tags: row.className.split(" ") })));
  rows.forEach((item, place) => { item.place = place; });
  const heads = table ? [...table.tHead.rows[0].cells].filter((cell) => cell.dataset.sort) : [];

  // Safari forgets what a table is once CSS lays its rows out as grids; naming the roles keeps it for screen readers.
  const roles = { table: "table", "thead, tbody": "rowgroup", tr: "row", th: "columnheader", td: "cell" };
  for (const [selector, role] of Object.entries(roles)) {
    for (const part of document.querySelectorAll(`:is(.cards, .neurons):is(${selector}), :is(.cards, .neurons) :is(${selector})`)) part.setAttribute("role", role);
  }

  function gather(items) {
    const together = Boolean(state.q || state.outcome || state.sort);
    for (const home of bodies) {
      const fragment = document.createDocumentFragment();
      for (const item of items) if ((together ? body : item.home) === home) fragment.append(item.row);
      home.append(fragment);
    }
    for (const fold of folds) fold.hidden = together;
  }

  function apply() {
    // A unit is matched whole: "bn2:1" does not mean "bn2:17".
    const words = state.q.toLowerCase().split(/\s+/).filter(Boolean).map((word) => /:\d+$/.test(word) ? word + " " : word);
    let shown = 0;
    for (const item of rows) {
      if (words.length && item.text === null) item.text = `${item.row.id} ${item.row.textContent} `.toLowerCase().replace(/\s+/g, " ");
      const visible = (!state.outcome || item.tags.includes(state.outcome)) && words.every((word) => item.text.includes(word));
      if (item.row.hidden === visible) item.row.hidden = !visible;
      shown += visible;
    }
    const all = rows.length.toLocaleString("en");
    $("shown").textContent = shown === rows.length ? `${all} example${rows.length === 1 ? "" : "s"}` : `${shown.toLocaleString("en")} of ${all} examples`;
  }

  function sort() {
    const column = heads.findIndex((head) => head.dataset.sort === state.sort);
    const up = state.dir !== "desc";
    for (const head of heads) head.removeAttribute("aria-sort");
    let sorted = rows;
    if (column >= 0) {
      heads[column].setAttribute("aria-sort", up ? "ascending" : "descending");
      const at = heads[column].cellIndex;
      const value = ({ row }) => {
        const cell = row.cells[at];
        const text = cell.dataset.v ?? (cell.firstChild ? cell.firstChild.textContent.trim() : "");
        return text === "" || text === "–" ? null : text;
      };
      const keyed = rows.map((item) => [value(item), item]);
      const numeric = keyed.every(([key]) => key === null || !Number.isNaN(Number(key)));
      const order = numeric ? (a, b) => a - b : new Intl.Collator("en", { numeric: true }).compare;
      keyed.sort(([a, x], [b, y]) => {
        if (a === null || b === null) return (a === null) - (b === null) || x.place - y.place;
        return (up ? order(a, b) : order(b, a)) || x.place - y.place;
      });
      sorted = keyed.map(([, item]) => item);
    }
    gather(sorted);
  }

  function keep() {
    const parts = new URLSearchParams(Object.entries(state).filter(([, value]) => value));
    // A page in a sandboxed frame or a notebook may not touch its address; it works without.
    try { history.replaceState(null, "", "#" + parts); } catch { /* nothing is lost but the link */ }
  }

  function show(id) {
    const row = document.getElementById(id);
    for (const old of document.querySelectorAll(".here")) old.classList.remove("here");
    if (!row) return;
    if (row.hidden) { state.q = state.outcome = ""; fill(); sort(); apply(); }
    const fold = row.closest("details");
    if (fold) fold.open = true;
    if (row.matches("tr")) row.classList.add("here");
    row.scrollIntoView({ block: row.matches("tr") ? "center" : "start" });
  }

  function fill() {
    $("q").value = state.q;
    $("outcome").value = state.outcome;
    if ($("outcome").selectedIndex < 0) { state.outcome = ""; $("outcome").value = ""; }
  }

  function follow() {
    const hash = location.hash.slice(1);
    if (hash && !hash.includes("=")) {
      let id = hash;
      try { id = decodeURIComponent(hash); } catch { /* a stray percent sign: take it as it is */ }
      return show(id);
    }
    const parts = new URLSearchParams(hash);
    for (const name of Object.keys(state)) state[name] = parts.get(name) || "";
    if (rows.length) { fill(); sort(); apply(); }
    if (hash) $("examples").scrollIntoView();
  }

  for (const head of heads) {
    const button = document.createElement("button");
    button.type = "button";
    button.textContent = head.textContent;
    head.replaceChildren(button);
    button.addEventListener("click", () => {
      // First click: the way one mostly wants it, most or worst first for numbers. Third click: the report's own order.
      const first = ["atypical", "units"].includes(head.dataset.sort) ? "desc" : "asc";
      const second = first === "asc" ? "desc" : "asc";
      if (state.sort !== head.dataset.sort) { state.sort = head.dataset.sort; state.dir = first; }
      else if (state.dir === first) state.dir = second;
      else state.sort = state.dir = "";
      sort();
      keep();
    });
  }
  if (rows.length) {
    $("q").addEventListener("input", (event) => { state.q = event.target.value; sort(); apply(); keep(); });
    $("outcome").addEventListener("change", (event) => { state.outcome = event.target.value; sort(); apply(); keep(); });
    document.addEventListener("keydown", (event) => {
      if (event.key === "/" && !event.ctrlKey && !event.metaKey && !event.target.matches("input, select")) {
        event.preventDefault();
        $("q").focus();
      }
    });
  }
  const tools = document.querySelector(".tools");
  tools.addEventListener("submit", (event) => event.preventDefault());
  tools.hidden = !rows.length;

  async function copy(text) {
    // Not allowed here, or no answer within two seconds: the old way.
    const late = new Promise((_, reject) => setTimeout(reject, 2000));
    try { await Promise.race([navigator.clipboard.writeText(text), late]); return; } catch { /* below */ }
    const area = document.createElement("textarea");
    area.value = text;
    area.className = "unseen";
    document.body.append(area);
    area.select();
    document.execCommand("copy");
    area.remove();
  }
  for (const button of document.querySelectorAll("[data-copy]")) {
    button.addEventListener("click", async () => {
      const source = $(button.dataset.copy);
      const text = source.rows ? [...source.rows].map((row) => row.cells[0].textContent).join("\n") : source.textContent;
      await copy(text);
      const before = button.textContent;
      button.textContent = "Copied";
      say("Copied");
      button.focus();
      setTimeout(() => { button.textContent = before; }, 1500);
    });
  }

  async function reportJson() {
    // Handed on as text: parsing would round the integers that JavaScript cannot hold.
    const text = $("report").textContent;
    if (!text.startsWith('{"gzip":')) return text + "\n";
    const bytes = Uint8Array.from(atob(JSON.parse(text).gzip), (character) => character.charCodeAt(0));
    return new Response(new Blob([bytes]).stream().pipeThrough(new DecompressionStream("gzip"))).text();
  }
  $("download").addEventListener("click", async () => {
    const link = document.createElement("a");
    link.href = URL.createObjectURL(new Blob([await reportJson()], { type: "application/json" }));
    link.download = "report.json";
    link.click();
    setTimeout(() => URL.revokeObjectURL(link.href), 10000);
  });

  // Inside a notebook's frame "#x" would resolve against the notebook's own address.
  if (location.protocol === "about:") {
    document.addEventListener("click", (event) => {
      const link = event.target.closest("a[href^='#']");
      if (link) { event.preventDefault(); show(decodeURIComponent(link.getAttribute("href").slice(1))); }
    });
  }

  window.addEventListener("hashchange", follow);
  follow();
})();
