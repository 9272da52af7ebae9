"use strict";
// The page asks the same endpoints as any client. Whatever the model says is put in as text, never as HTML.

const by = (id) => document.getElementById(id);

function headers() {
  const token = by("token").value;
  const given = { "Content-Type": "application/json" };
  if (token) given.Authorization = `Bearer ${token}`;
  return given;
}

async function post(path, body) {
  const response = await fetch(path, { method: "POST", headers: headers(), body: JSON.stringify(body) });
  if (!response.ok) throw new Error(await messageOf(response));
  return response;
}

async function messageOf(response) {
  try {
    return (await response.json()).error.message;
  } catch {
    return `the service answered with status ${response.status}`;
  }
}

function number(value) {
  if (value === null) return "undefined";
  const size = Math.abs(value);
  return size !== 0 && (size < 1e-3 || size >= 1e5) ? value.toExponential(3) : value.toPrecision(4);
}

function show(uncertainty, text, usage, seconds) {
  by("text").replaceChildren(
    ...uncertainty.tokens.map((token) => {
      const span = document.createElement("span");
      const p = Math.exp(token.logprob);
      span.textContent = token.token;
      span.title = `p ${number(p)}, entropy ${number(token.entropy)} nats, ` +
        `log ‖∇ log p‖² in the output matrix ${number(token.log_sq_norm_head)}`;
      span.style.backgroundColor = `hsl(${120 * p} 75% 75%)`;
      return span;
    }),
  );
  if (!uncertainty.tokens.length) by("text").textContent = text;
  by("scores").replaceChildren(
    ...Object.entries(uncertainty.scores).map(([name, value]) => {
      const row = document.createElement("tr");
      for (const words of [name, number(value)]) {
        const cell = document.createElement("td");
        cell.textContent = words;
        row.append(cell);
      }
      return row;
    }),
  );
  const guard = uncertainty.guard;
  by("decision").className = uncertainty.decision ?? "";
  by("decision").textContent = guard
    ? `${uncertainty.decision === "accept" ? "Accepted" : "Not accepted"}: ${guard.score} is ` +
      `${number(guard.value)}, ` +
      (guard.threshold === null
        ? "and the guard accepts no answer."
        : `and the guard accepts answers ${guard.accepts} ${number(guard.threshold)}. ` +
          `At most ${guard.target_risk} of the accepted answers are wrong, with confidence ${guard.confidence}.`)
    : "The service has no guard: these are scores, and no decision.";
  by("cost").textContent =
    `${usage.prompt_tokens} tokens of prompt, ${usage.completion_tokens} of answer, ${seconds.toFixed(2)} s.`;
  by("result").hidden = false;
}

async function* events(response) {
  const reader = response.body.pipeThrough(new TextDecoderStream()).getReader();
  let rest = "";
  for (;;) {
    const { value, done } = await reader.read();
    if (done) return;
    const lines = (rest + value).split("\n\n");
    rest = lines.pop();
    for (const line of lines) {
      const data = line.replace(/^data: /, "");
      if (data !== "[DONE]") yield JSON.parse(data);
    }
  }
}

async function write(messages, begun) {
  const response = await post("/v1/chat/completions", {
    messages, stream: true, temperature: 0, stream_options: { include_usage: true },
  });
  let text = "", uncertainty = null, usage = null;
  by("text").textContent = "";
  by("decision").textContent = "";
  by("scores").replaceChildren();
  by("cost").textContent = "";
  by("result").hidden = false;
  for await (const event of events(response)) {
    if (event.error) throw new Error(event.error.message);
    text += event.choices[0]?.delta?.content ?? "";
    by("text").textContent = text;
    uncertainty = event.uncertainty ?? uncertainty;
    usage = event.usage ?? usage;
  }
  if (!uncertainty) throw new Error("the model wrote nothing");
  show(uncertainty, text, usage, (performance.now() - begun) / 1000);
}

async function measure(event) {
  event?.preventDefault();
  by("error").hidden = true;
  by("result").hidden = true;
  by("ask").disabled = true;
  const begun = performance.now();
  const messages = [{ role: "user", content: by("question").value }];
  const answer = by("answer").value;
  try {
    if (answer.trim()) {
      const checked = await (await post("/v1/checks", { messages, answer })).json();
      show(checked, answer, checked.usage, (performance.now() - begun) / 1000);
    } else {
      await write(messages, begun);
    }
  } catch (error) {
    by("result").hidden = true;
    by("error").textContent = error.message;
    by("error").hidden = false;
  } finally {
    by("ask").disabled = false;
  }
}

async function introduce() {
  const response = await fetch("/v1/models", { headers: headers() });
  by("about").textContent = response.ok
    ? `Model ${(await response.json()).data[0].id}. An answer is measured in one forward and one backward pass.`
    : "This service asks for a token.";
}

by("form").addEventListener("submit", measure);
by("token").addEventListener("change", introduce);
introduce();
// A link may carry a question and its answer behind the #, which browsers do not send to the service.
const linked = new URLSearchParams(location.hash.slice(1));
for (const name of ["question", "answer"]) if (linked.has(name)) by(name).value = linked.get(name);
if (linked.has("question")) measure();
