"use strict";

const $ = id => document.getElementById(id);
const editor = $("editor");

// A later tab of the same annotator takes a row over; the server tells them apart by this.
const tab = Array.from(crypto.getRandomValues(new Uint8Array(12)), byte => byte.toString(16).padStart(2, "0")).join("");
const NAME_KEY = "trl-tokenreward/annotator";
const CHECK_AFTER = 150; // milliseconds without a keystroke
const RETRY_AFTER = 2000;

let about = null;
let annotator = "";
let shown = null; // what the server said of the row before us
let busy = false; // a row is being saved or fetched
let timer = null;
let checking = null; // the check that is under way

// --- asking the server ---

class Problem extends Error {
  constructor(message, status = 0, otherTab = false) {
    super(message);
    this.status = status;
    this.otherTab = otherTab;
  }
}

async function ask(action, body = {}) {
  let response;
  try {
    response = await fetch(`/api/${action}`, {
      method: "POST",
      headers: { "Content-Type": "application/json" },
      body: JSON.stringify(body),
    });
  } catch {
    throw new Problem("The server does not answer. What you typed is kept in this browser.");
  }
  if (response.status === 401) location.assign("/login");
  const answer = await response.json().catch(() => ({}));
  if (!response.ok) throw new Problem(answer.error || `The server says ${response.status}.`, response.status, answer.other_tab);
  return answer;
}

// --- what is typed and not yet with the server is kept in the browser ---

const textKey = () => `trl-tokenreward/${about.id}/${annotator}/${shown.row}`;

function keepHere(text) {
  try {
    localStorage.setItem(textKey(), text);
  } catch {
    // A full or forbidden storage: the server has the text a moment later.
  }
}

function keptHere() {
  try {
    return localStorage.getItem(textKey());
  } catch {
    return null;
  }
}

function forgetHere() {
  try {
    localStorage.removeItem(textKey());
  } catch {
    // There was nothing to forget.
  }
}

function remember(key, value) {
  try {
    localStorage.setItem(key, value);
  } catch {
    // The name is asked for again next time.
  }
}

// --- checking as one types ---

function typed() {
  keepHere(editor.value);
  grow();
  clearTimeout(timer);
  timer = setTimeout(check, CHECK_AFTER);
}

async function check(take = false) {
  clearTimeout(timer);
  while (checking) await checking.catch(() => {});
  if (!shown || shown.row === null) return;
  const row = shown.row;
  const text = editor.value;
  checking = ask("check", { annotator, tab, row, text, take: take === true });
  try {
    const judged = await checking;
    if (shown.row !== row || editor.value !== text) return;
    forgetHere();
    showGate(judged);
    showState();
  } catch (problem) {
    if (shown.row !== row) return;
    if (problem.otherTab) showBanner(problem.message);
    else if (problem.status && problem.status < 500) showProblem(problem.message);
    else {
      showProblem(problem.message);
      timer = setTimeout(check, RETRY_AFTER);
    }
  } finally {
    checking = null;
  }
}

// Before anything else is asked about the row, what was typed last goes to the server.
async function settle() {
  clearTimeout(timer);
  while (checking) await checking.catch(() => {});
  if (shown && shown.row !== null && keptHere() !== null) await check();
}

// --- showing ---

const percent = share => `${share > 0 && share < 0.01 ? (100 * share).toFixed(1) : Math.round(100 * share)}%`;

function fill(element, pieces) {
  const tags = { delete: "del", insert: "ins", keep: "span" };
  element.replaceChildren(
    ...pieces.map(([kind, text]) => {
      const part = document.createElement(tags[kind]);
      part.textContent = text;
      return part;
    }),
  );
}

// Of a long diff, the place where the cursor is comes into view.
function followCursor(diff, pieces) {
  let left = editor.selectionStart;
  const place = pieces.findIndex(([kind, text]) => kind !== "delete" && (left -= text.length) <= 0);
  const part = diff.children[place];
  if (!part || diff.scrollHeight <= diff.clientHeight) return;
  const rects = part.getClientRects();
  const box = diff.getBoundingClientRect();
  const inPart = Math.max(0, Math.min(1, 1 + left / Math.max(1, pieces[place][1].length)));
  const line = rects[Math.round(inPart * (rects.length - 1))];
  if (line.top < box.top || line.bottom > box.bottom) diff.scrollTop += line.top - box.top - box.height / 2;
}

function trimEnds(pieces) {
  const trimmed = pieces.map(piece => [...piece]);
  if (trimmed.length && trimmed[0][0] === "keep") trimmed[0][1] = trimmed[0][1].trimStart();
  if (trimmed.length && trimmed.at(-1)[0] === "keep") trimmed.at(-1)[1] = trimmed.at(-1)[1].trimEnd();
  return trimmed;
}

function showMeter(id, text, limit, share) {
  const meter = $(id);
  meter.querySelector("dd").textContent = `${text} of ${limit}`;
  meter.querySelector(".track div").style.width = `${Math.min(100, 100 * share)}%`;
  meter.classList.toggle("over", share > 1);
}

function showGate(judged) {
  const { max_edit_ratio, max_hunks, max_length_change } = about.limits;
  const pieces = trimEnds(judged.pieces);
  fill($("diff"), pieces);
  followCursor($("diff"), pieces);
  const change = judged.length_change;
  const sign = change > 0 ? "+" : change < 0 ? "−" : "";
  showMeter("meter-ratio", percent(judged.edit_ratio), percent(max_edit_ratio), judged.edit_ratio / max_edit_ratio);
  showMeter("meter-hunks", judged.hunks, max_hunks, judged.hunks / max_hunks);
  const used = max_length_change ? Math.abs(change) / max_length_change : change ? 2 : 0;
  showMeter("meter-length", sign + percent(Math.abs(change)), `±${percent(max_length_change)}`, used);
  if (judged.reason === "edited") setGate("ready", "✓", "Small enough to save.");
  else if (judged.reason === "identical") setGate("waiting", "…", judged.detail);
  else setGate("refused", "✗", judged.detail);
}

function showProblem(message) {
  setGate("refused", "✗", message);
}

function setGate(kind, sign, text) {
  $("gate").className = kind;
  $("gate-sign").textContent = sign;
  if ($("gate-text").textContent !== text) $("gate-text").textContent = text; // else it would be read out again
  $("save").classList.toggle("off", kind !== "ready");
}

function showState() {
  const done = shown.outcome;
  const parts = [`row ${shown.row}`];
  if (done === "edited") parts.push("saved before");
  else if (done) parts.push(`skipped: ${about.skip_reasons[done].toLowerCase()}${shown.comment ? ` (${shown.comment})` : ""}`);
  if (editor.value !== shown.saved) parts.push(done ? "changed since" : "draft kept");
  $("row-state").textContent = parts.join(" · ");
}

function duration(seconds) {
  const minutes = Math.max(1, Math.round(seconds / 60));
  return minutes < 90 ? `${minutes} min` : `${Math.round(minutes / 60)} h`;
}

function showProgress(progress) {
  const parts = [`${progress.done} of ${progress.needed} done`, `${progress.mine} by you`, `${progress.left} left for you`];
  if (progress.seconds !== null && progress.left) parts.push(`about ${duration(progress.seconds)} at your pace`);
  $("progress").textContent = parts.join(" · ");
  $("done-bar").style.width = `${progress.needed ? (100 * progress.done) / progress.needed : 0}%`;
}

function showPrompt(turns) {
  $("prompt-section").hidden = !turns.length;
  $("prompt").replaceChildren(
    ...turns.map(([role, text]) => {
      const turn = document.createElement("div");
      turn.className = "turn";
      if (role) {
        const label = document.createElement("b");
        label.textContent = role;
        turn.append(label);
      }
      const words = document.createElement("p");
      words.className = "text";
      words.dir = "auto";
      words.textContent = text;
      turn.append(words);
      return turn;
    }),
  );
  $("prompt").scrollTop = $("prompt").scrollHeight; // the last turn is what the answer answers
}

function grow() {
  editor.style.height = "auto";
  editor.style.height = `${editor.scrollHeight + 4}px`;
}

let noteTimer = null;
function note(text) {
  $("note").textContent = text;
  $("note").className = "on";
  clearTimeout(noteTimer);
  noteTimer = setTimeout(() => ($("note").className = ""), 2500);
}

function showBanner(message) {
  $("banner-text").textContent = `${message} What you type here is not kept.`;
  $("banner").hidden = false;
  editor.readOnly = true; // the focus stays: a button that took it would take the next key too
}

function hideBanner() {
  $("banner").hidden = true;
  editor.readOnly = false;
}

// --- going from row to row ---

// `row` is one of the annotator's own, or null for the next to do.
async function go(row) {
  const next = await ask("show", { annotator, tab, row });
  hideBanner();
  shown = next;
  showProgress(shown.progress);
  const finished = shown.row === null;
  $("work").hidden = $("bar").hidden = finished;
  $("finished").hidden = !finished;
  $("previous").disabled = shown.previous === null;
  $("following").disabled = finished || (shown.following === null && !shown.outcome);
  if (finished) {
    const { done, needed } = shown.progress;
    $("finished-text").textContent =
      done === needed ? "All rows are done. Thank you!" : "The rows that are not done yet are with other annotators.";
    $("look-back").hidden = shown.previous === null;
    $(shown.previous === null ? "look-again" : "look-back").focus();
    return;
  }
  showPrompt(shown.turns);
  $("preferred").textContent = shown.preferred;
  $("preferred").parentElement.hidden = !shown.preferred; // a policy's own answer has none beside it
  $("preferred").scrollTop = 0;
  const here = keptHere();
  editor.value = here ?? shown.text;
  grow();
  showGate(shown);
  showState();
  scrollTo(0, 0);
  editor.setSelectionRange(0, 0);
  editor.focus({ preventScroll: true });
  if (here !== null) await check();
}

// One thing at a time: what is typed while a row is being saved would belong to neither.
async function alone(work) {
  if (busy) return;
  busy = true;
  editor.readOnly = true;
  try {
    await settle();
    if (!$("banner").hidden) return;
    await work();
  } catch (problem) {
    if (problem.otherTab) showBanner(problem.message);
    else showProblem(problem.message);
    if (!$("bar").hidden) blink();
  } finally {
    busy = false;
    if ($("banner").hidden) editor.readOnly = false;
  }
}

function blink() {
  $("gate").classList.add("blink");
  setTimeout(() => $("gate").classList.remove("blink"), 600);
}

const save = () =>
  alone(async () => {
    const row = shown.row;
    await ask("save", { annotator, tab, row, text: editor.value });
    forgetHere();
    note(`Saved row ${row}.`);
    await go(null);
  });

const goPrevious = () => alone(async () => shown.previous !== null && (await go(shown.previous)));
const goFollowing = () => alone(async () => (shown.following !== null || shown.outcome) && (await go(shown.following)));

function reset() {
  if (busy || editor.readOnly) return;
  editor.focus();
  editor.select();
  // The one way to set a text that Ctrl+Z takes back. It is deprecated without a successor, and works in all browsers.
  if (!document.execCommand("insertText", false, shown.original)) editor.value = shown.original;
  typed();
}

// --- dialogs ---

const chosenReason = () => document.querySelector("#reasons input:checked");

function openSkip() {
  if (busy || editor.readOnly) return;
  $("skip-problem").textContent = "";
  $("detail").value = shown.outcome && shown.outcome !== "edited" ? shown.comment : "";
  for (const input of document.querySelectorAll("#reasons input")) input.checked = input.value === shown.outcome;
  $("skip-dialog").showModal();
  (chosenReason() || document.querySelector("#reasons input")).focus();
}

async function skip(event) {
  event.preventDefault();
  const reason = chosenReason()?.value;
  const detail = $("detail").value;
  if (!reason || (reason === "other" && !detail.trim())) {
    $("skip-problem").textContent = reason ? "Say what the reason is." : "Choose a reason.";
    if (reason) $("detail").focus();
    return;
  }
  $("skip-dialog").close();
  await alone(async () => {
    const row = shown.row;
    await ask("skip", { annotator, tab, row, reason, detail, text: editor.value });
    forgetHere();
    note(`Skipped row ${row}.`);
    await go(null);
  });
}

function makeReasons() {
  $("reasons").replaceChildren(
    ...Object.entries(about.skip_reasons).map(([reason, text], place) => {
      const label = document.createElement("label");
      const input = document.createElement("input");
      const key = document.createElement("kbd");
      input.type = "radio";
      input.name = "reason";
      input.value = reason;
      key.textContent = place + 1;
      label.append(input, " ", key, ` ${text}`);
      return label;
    }),
  );
}

function skipKeys(event) {
  const inputs = document.querySelectorAll("#reasons input");
  const place = Number(event.key) - 1;
  if (event.target === $("detail") || event.ctrlKey || event.altKey || event.metaKey || !inputs[place]) return;
  event.preventDefault();
  inputs[place].checked = true;
  inputs[place].focus();
  if (inputs[place].value === "other") $("detail").focus();
}

function showName() {
  $("name-button-name").textContent = annotator;
  $("name-button").hidden = false;
}

function askName() {
  $("name").value = annotator;
  $("name-problem").textContent = "";
  $("names").replaceChildren(...about.annotators.map(name => new Option(name, name)));
  $("name-dialog").showModal();
  $("name").select();
}

async function start(event) {
  event.preventDefault();
  const before = annotator;
  const name = $("name").value.trim().replace(/\s+/g, " ").normalize("NFC");
  try {
    await settle();
    if (before && before !== name) await ask("leave", { annotator: before });
    annotator = name;
    await go(null);
    remember(NAME_KEY, name);
    showName();
    $("name-dialog").close();
    if (shown.row !== null) editor.focus({ preventScroll: true });
  } catch (problem) {
    annotator = before;
    $("name-problem").textContent = problem.message;
  }
}

// --- keys ---

// On a Mac, Option makes another character of a letter, so there the key's place counts.
const isLetter = (event, letter) =>
  event.key.toLowerCase() === letter || (!/^[a-z]$/i.test(event.key) && event.code === `Key${letter.toUpperCase()}`);

function keys(event) {
  // AltGr is Ctrl and Alt on Windows, and writes letters; an input method has Enter for itself.
  if (event.isComposing || event.getModifierState("AltGraph") || document.querySelector("dialog[open]")) return;
  const working = !$("work").hidden;
  const alt = event.altKey && !event.ctrlKey && !event.metaKey;
  let act = null;
  if ((event.ctrlKey || event.metaKey) && !event.altKey && event.key === "Enter") act = working && save;
  else if (alt && isLetter(event, "s")) act = working && openSkip;
  else if (alt && isLetter(event, "r")) act = working && reset;
  else if (alt && isLetter(event, "h")) act = () => $("help-dialog").showModal();
  else if (alt && event.key === "PageUp") act = goPrevious;
  else if (alt && event.key === "PageDown") act = goFollowing;
  else return;
  event.preventDefault();
  if (act && !event.repeat) act();
}

async function begin() {
  try {
    about = await ask("about");
  } catch (problem) {
    $("progress").textContent = problem.message;
    setTimeout(begin, RETRY_AFTER);
    return;
  }
  $("criteria").textContent = about.criteria;
  $("unfit").textContent = Object.entries(about.unfit)
    .map(([reason, count]) => `${count} rows of the data set cannot be edited here: ${reason}.`)
    .join(" ");
  makeReasons();
  try {
    annotator = localStorage.getItem(NAME_KEY) || "";
  } catch {
    annotator = "";
  }
  if (!annotator) return askName();
  showName();
  await alone(() => go(null));
}

editor.addEventListener("input", typed);
addEventListener("resize", grow);
addEventListener("keydown", keys);
$("save").addEventListener("click", save);
$("skip").addEventListener("click", openSkip);
$("reset").addEventListener("click", reset);
$("previous").addEventListener("click", goPrevious);
$("following").addEventListener("click", goFollowing);
$("look-back").addEventListener("click", goPrevious);
$("look-again").addEventListener("click", () => alone(() => go(null)));
$("help-button").addEventListener("click", () => $("help-dialog").showModal());
$("name-button").addEventListener("click", askName);
$("name-dialog").addEventListener("submit", start);
$("name-dialog").addEventListener("close", () => annotator || askName());
$("skip-dialog").addEventListener("submit", skip);
$("skip-dialog").addEventListener("keydown", skipKeys);
$("skip-cancel").addEventListener("click", () => $("skip-dialog").close());
$("banner-take").addEventListener("click", async () => {
  hideBanner();
  editor.focus();
  await check(true);
});
$("banner-load").addEventListener("click", async () => {
  forgetHere();
  await go(shown.row).catch(problem => showProblem(problem.message));
});
begin();
