// What is on screen as a command and as a program.

/** A cURL command for a POSIX shell. Several pictures come as JSON, one as the file itself. */
export function curl(origin, { prompt, seed, size, steps, n }, needsKey = false) {
  const body = { prompt, seed, size, steps, ...(n > 1 ? { n } : {}) };
  return [
    `curl ${quote(`${origin}/generate`)}`,
    "-H 'Content-Type: application/json'",
    ...(n > 1 ? ["-H 'Accept: application/json'"] : []),
    ...(needsKey ? ['-H "Authorization: Bearer $TWINSHOT_API_KEY"'] : []),
    `-d ${quote(JSON.stringify(body))}`,
    `-o ${n > 1 ? "pictures.json" : "picture.png"}`,
  ].join(" \\\n  ");
}

/** A Python program for the `twinshot` package. A key is read from TWINSHOT_API_KEY by the package. */
export function python(origin, { prompt, seed, size, steps, n }, seeds = [seed]) {
  const [width, height] = size.split("x");
  const call = (value) =>
    `client.generate(${literal(prompt)}, seed=${value}, width=${width}, height=${height}, steps=${steps})`;
  const draw =
    n > 1
      ? [`    for seed in (${seeds.join(", ")}):`, `        ${call("seed")}.save(f"picture-{seed}.png")`]
      : [`    ${call(seed)}.save("picture.png")`];
  return ["from twinshot import Client", "", `with Client(${literal(origin)}) as client:`, ...draw].join("\n");
}

function quote(text) {
  return `'${text.replaceAll("'", `'\\''`)}'`;
}

/** JSON's strings are Python's, too. */
function literal(text) {
  return JSON.stringify(text);
}
