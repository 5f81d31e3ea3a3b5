// Draws what the form asks for and says where the milliseconds went. Talks to this server only.

const $ = (id) => document.getElementById(id);

async function start() {
  const answer = await fetch("/v1/models").catch(() => null);
  if (!answer?.ok) {
    setTimeout(start, 1000); // the model is still loading
    return;
  }
  const model = (await answer.json()).data[0];
  $("model").textContent = [model.id, model.description].filter(Boolean).join(": ");
  fill($("size"), model.sizes);
  fill($("steps"), model.steps);
  showWords(model.vocabulary);
  $("draw").disabled = false;
  $("prompt").select();
}

function fill(select, values) {
  select.replaceChildren(...values.map((value) => new Option(value)));
}

function showWords(vocabulary) {
  const kinds = Object.entries(vocabulary);
  $("words").hidden = kinds.length === 0;
  showPairs($("vocabulary"), kinds.map(([kind, words]) => [kind, spell(words)]));
}

function spell(words) {
  if (Array.isArray(words)) return words.join(", ");
  return typeof words === "object" && words ? Object.keys(words).join(", ") : String(words);
}

function showPairs(list, pairs) {
  list.replaceChildren(...pairs.flatMap(([name, value]) => [element("dt", name), element("dd", value)]));
}

function element(tag, text) {
  const made = document.createElement(tag);
  made.textContent = text;
  return made;
}

function request() {
  const body = {
    prompt: $("prompt").value,
    size: $("size").value,
    steps: Number($("steps").value),
    format: $("format").value,
  };
  if ($("seed").value) body.seed = Number($("seed").value);
  return { method: "POST", headers: { "Content-Type": "application/json" }, body: JSON.stringify(body) };
}

async function draw() {
  say("Drawing …");
  $("draw").disabled = true;
  const started = performance.now();
  try {
    const answer = await fetch("/generate", request());
    if (!answer.ok) throw new Error((await answer.json()).detail);
    const file = await answer.blob();
    await show(file, answer.headers, performance.now() - started);
    say("");
  } catch (error) {
    say(error instanceof TypeError ? "The server does not answer." : error.message, true);
  } finally {
    $("draw").disabled = false;
  }
}

async function show(file, headers, total) {
  const picture = $("picture");
  URL.revokeObjectURL(picture.src);
  picture.src = URL.createObjectURL(file);
  picture.alt = $("prompt").value;
  $("figure").hidden = false;
  await picture.decode();
  const seed = headers.get("X-Seed");
  $("download").href = picture.src;
  $("download").download = `twinshot-${seed}.${$("format").value}`;
  showPairs($("facts"), [
    ["seed", seed],
    ["size", `${picture.naturalWidth}x${picture.naturalHeight}`],
    ["file", `${(file.size / 1024).toFixed(0)} KiB`],
    ...stages(headers.get("Server-Timing")),
    ["in all", milliseconds(total)],
  ]);
}

// "text;dur=2.0, denoise;dur=70.1" -> [["text", "2.0 ms"], …]
function stages(timing) {
  return (timing ?? "")
    .split(", ")
    .map((entry) => entry.split(";dur="))
    .map(([stage, ms]) => [stage, milliseconds(Number(ms))]);
}

function milliseconds(value) {
  return `${value.toFixed(1)} ms`;
}

function say(text, wrong = false) {
  $("status").textContent = text;
  $("status").classList.toggle("wrong", wrong);
}

$("form").addEventListener("submit", (event) => {
  event.preventDefault();
  draw();
});
start();
