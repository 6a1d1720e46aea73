"use strict";
// The review page: a table of pairs, three planes of the one that is looked at, and what a person decided. Texts are
// set as text, never as HTML, so that no file name can be a script.
(() => {
  const { title, run, pairs } = window.REVIEW;
  const byId = new Map(pairs.map((pair) => [pair.id, pair]));
  const $ = (id) => document.getElementById(id);
  const KEY = `spatial-diffusion-review:${run}`;
  const FLICKER_MS = 400;

  // What was decided: {id: {decision, note, time}}, kept by the browser.
  let decided = {};
  try {
    decided = JSON.parse(localStorage.getItem(KEY) || "{}");
    localStorage.setItem(KEY, JSON.stringify(decided));
  } catch (error) {
    $("storage-warning").hidden = false;
  }

  function decide(id, change) {
    decided[id] = { decision: "", note: "", ...decided[id], ...change, time: new Date().toISOString() };
    try {
      localStorage.setItem(KEY, JSON.stringify(decided));
    } catch (error) {
      $("storage-warning").hidden = false;
    }
    refreshRow(id);
    tally();
  }

  const decisionOf = (id) => (decided[id] && decided[id].decision) || "";
  const noteOf = (id) => (decided[id] && decided[id].note) || "";

  // The table

  const sorting = { column: "risk", up: false };
  let order = [];
  const rows = new Map();

  function cell(row, text, className) {
    const made = document.createElement("td");
    made.textContent = text;
    if (className) made.className = className;
    row.append(made);
    return made;
  }

  function number(value, digits) {
    return typeof value === "number" ? value.toFixed(digits) : "";
  }

  function makeRow(pair) {
    const row = document.createElement("tr");
    row.dataset.id = pair.id;
    const first = cell(row, "");
    if (pair.figures.thumbnail) {
      const picture = document.createElement("img");
      picture.loading = "lazy";
      picture.width = picture.height = 48;
      picture.alt = "";
      picture.src = pair.figures.thumbnail;
      first.append(picture);
    }
    cell(row, pair.moving);
    cell(row, pair.fixed);
    const sure = typeof pair.probability === "number" ? `${number(1 - pair.probability, 3)} ` : "";
    cell(row, `${sure}${pair.word}`, pair.word);
    cell(row, number(pair.similarity, 2));
    cell(row, "");
    row.addEventListener("click", () => show(pair.id));
    return row;
  }

  function refreshRow(id) {
    const last = rows.get(id).lastElementChild;
    last.className = decisionOf(id);
    last.textContent = decisionOf(id) + (noteOf(id) ? ` (${noteOf(id)})` : "");
  }

  function sort() {
    const value = (pair) => (sorting.column === "decision" ? decisionOf(pair.id) : pair[sorting.column]);
    const compare = (a, b) => {
      const [x, y] = [value(a), value(b)];
      if (x === y || (x == null && y == null)) return 0;
      if (x == null) return 1; // what is not known comes last, whichever way
      if (y == null) return -1;
      const way = typeof x === "string" ? x.localeCompare(y, undefined, { numeric: true }) : x - y;
      return sorting.up ? way : -way;
    };
    order = [...pairs].sort((a, b) => compare(a, b) || (a.id < b.id ? -1 : 1)).map((pair) => pair.id);
    $("rows").replaceChildren(...order.map((id) => rows.get(id)));
    for (const button of document.querySelectorAll("[data-sort]")) {
      button.removeAttribute("aria-sort");
      if (button.dataset.sort === sorting.column) {
        button.setAttribute("aria-sort", sorting.up ? "ascending" : "descending");
      }
    }
  }

  function tally() {
    const count = (decision) => pairs.filter((pair) => decisionOf(pair.id) === decision).length;
    $("tally").textContent =
      `${pairs.length} pairs: ${count("accepted")} accepted, ${count("rejected")} rejected, ${count("")} undecided`;
  }

  // The viewer

  let current = null;
  let flicker = null;
  const mode = () => document.querySelector("[name=mode]:checked").value;

  function picture(source, className) {
    const made = document.createElement("img");
    made.className = className;
    made.alt = className === "top" ? "moving" : "fixed";
    made.src = source;
    return made;
  }

  function drawPlanes() {
    const pair = byId.get(current);
    const state = $("before").checked ? "before" : "moved";
    const figures = pair.views.map((view) => {
      const figure = document.createElement("figure");
      const plane = document.createElement("div");
      plane.className = "plane";
      plane.append(picture(pair.figures[view].fixed, "bottom"), picture(pair.figures[view][state], "top"));
      const caption = document.createElement("figcaption");
      caption.textContent = view;
      figure.append(plane, caption);
      return figure;
    });
    $("planes").replaceChildren(...figures);
    applyMode();
  }

  function setOpacity(value) {
    for (const top of document.querySelectorAll("#planes .top")) top.style.opacity = value;
  }

  function applyMode() {
    clearInterval(flicker);
    flicker = null;
    $("planes").classList.toggle("checkerboard", mode() === "checkerboard");
    setOpacity(mode() === "fade" ? $("slider").value / 100 : 1);
    if (mode() === "flicker") {
      let on = true;
      flicker = setInterval(() => {
        on = !on;
        setOpacity(on ? 1 : 0);
      }, FLICKER_MS);
    }
  }

  function show(id) {
    if (current) rows.get(current).removeAttribute("aria-current");
    current = id;
    const pair = byId.get(id);
    const row = rows.get(id);
    row.setAttribute("aria-current", "true");
    row.scrollIntoView({ block: "nearest" });
    $("viewer").hidden = false;
    $("pair").textContent = `${pair.moving} → ${pair.fixed}`;
    const parts = [pair.why ? `${pair.word}: ${pair.why}` : pair.word];
    if (typeof pair.probability === "number") parts.push(`P(wrong) ${number(1 - pair.probability, 3)}`);
    if (typeof pair.similarity === "number") {
      const before = typeof pair.similarity_before === "number" ? `${number(pair.similarity_before, 2)} → ` : "";
      parts.push(`similarity ${before}${number(pair.similarity, 2)}`);
    }
    if (pair.in_words) parts.push(pair.in_words);
    $("words").textContent = parts.join("; ");
    $("words").className = pair.word;
    $("warnings").replaceChildren(
      ...(pair.warnings || []).map((text) => {
        const item = document.createElement("li");
        item.textContent = text;
        return item;
      }),
    );
    $("note").value = noteOf(id);
    drawPlanes();
  }

  function step(by) {
    const place = order.indexOf(current) + by;
    if (place >= 0 && place < order.length) show(order[place]);
  }

  function settle(decision) {
    if (!current) return;
    decide(current, { decision });
    if (decision) step(1);
  }

  // The table as CSV (RFC 4180)

  function quoted(value) {
    let text = value == null ? "" : String(value);
    // A spreadsheet would take these for formulas; numbers may begin with a minus.
    if (/^[=+@\t\r]/.test(text) || /^-(?![\d.])/.test(text)) text = `'${text}`;
    return /[",\r\n]/.test(text) ? `"${text.replaceAll('"', '""')}"` : text;
  }

  function csv() {
    const names = ["id", "moving", "fixed", "word", "probability", "similarity", "decision", "note", "time"];
    const lines = order.map((id) => {
      const all = { ...byId.get(id), decision: decisionOf(id), note: noteOf(id), time: (decided[id] || {}).time };
      return names.map((name) => quoted(all[name])).join(",");
    });
    return [names.join(","), ...lines].join("\r\n") + "\r\n";
  }

  function exportCsv() {
    const link = document.createElement("a");
    // The mark at the beginning tells spreadsheets that it is UTF-8.
    link.href = URL.createObjectURL(new Blob(["\ufeff", csv()], { type: "text/csv;charset=utf-8" }));
    link.download = "review.csv";
    link.click();
    setTimeout(() => URL.revokeObjectURL(link.href), 1000);
  }

  // What a person does

  const keys = {
    n: () => step(1), ArrowDown: () => step(1), p: () => step(-1), ArrowUp: () => step(-1),
    a: () => settle("accepted"), r: () => settle("rejected"), u: () => settle(""),
    f: () => choose("flicker"), c: () => choose("checkerboard"),
    b: () => { $("before").checked = !$("before").checked; drawPlanes(); },
  };

  function choose(value) {
    const wanted = mode() === value ? "fade" : value;
    document.querySelector(`[name=mode][value=${wanted}]`).checked = true;
    applyMode();
  }

  document.addEventListener("keydown", (event) => {
    if (event.ctrlKey || event.metaKey || event.altKey || event.target.matches("input[type=text]")) return;
    if (event.target.matches("input[type=range], input[type=radio]") && event.key.startsWith("Arrow")) return;
    if (current && keys[event.key]) {
      event.preventDefault();
      keys[event.key]();
    }
  });
  for (const button of document.querySelectorAll("[data-sort]")) {
    button.addEventListener("click", () => {
      const same = sorting.column === button.dataset.sort;
      sorting.up = same ? !sorting.up : !["risk", "similarity"].includes(button.dataset.sort);
      sorting.column = button.dataset.sort;
      sort();
    });
  }
  for (const radio of document.querySelectorAll("[name=mode]")) radio.addEventListener("change", applyMode);
  $("slider").addEventListener("input", () => {
    document.querySelector("[name=mode][value=fade]").checked = true;
    applyMode();
  });
  $("before").addEventListener("change", drawPlanes);
  $("note").addEventListener("input", () => current && decide(current, { note: $("note").value }));
  $("accept").addEventListener("click", () => settle("accepted"));
  $("reject").addEventListener("click", () => settle("rejected"));
  $("undecided").addEventListener("click", () => settle(""));
  $("previous").addEventListener("click", () => step(-1));
  $("next").addEventListener("click", () => step(1));
  $("export").addEventListener("click", exportCsv);

  document.title = title;
  $("title").textContent = title;
  for (const pair of pairs) rows.set(pair.id, makeRow(pair));
  sort();
  for (const id of rows.keys()) refreshRow(id);
  tally();
  show(order[0]);
})();
