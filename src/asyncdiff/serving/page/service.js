// The service: what it says of itself, and pictures as they are drawn.

// Something that the user is told in a sentence.
export class ServiceError extends Error {
  constructor(message, status = 0) {
    super(message);
    this.status = status;
  }
}

const GONE = "The service does not answer. Is it still running?";
const BROKEN_OFF = "The connection to the service broke off before the picture was there.";

export async function models(key) {
  const answer = await asked("v1/models", { headers: headers(key) });
  return (await answer.json()).data;
}

// The events of one generation, up to the picture. Who stops to read them ends it, by the signal.
export async function* draw(request, key, signal) {
  const body = JSON.stringify({ ...request, stream: true });
  const kind = { "Content-Type": "application/json" };
  const answer = await asked("v1/images/generations", { method: "POST", headers: { ...headers(key), ...kind }, body, signal });
  let isThere = false;
  for await (const event of events(answer.body)) {
    if (event.type === "error") {
      throw new ServiceError(sentence(event.error.message));
    }
    isThere ||= event.type === "image_generation.completed";
    yield event;
  }
  if (!isThere) {
    throw new ServiceError(BROKEN_OFF);
  }
}

function headers(key) {
  return key ? { Authorization: `Bearer ${key}` } : {};
}

async function asked(address, request) {
  let answer;
  try {
    answer = await fetch(address, { ...request, cache: "no-store", credentials: "omit" });
  } catch (error) {
    throw error instanceof TypeError ? new ServiceError(GONE) : error;
  }
  if (!answer.ok) {
    throw new ServiceError(await why(answer), answer.status);
  }
  return answer;
}

// What is wrong, in the service's words; what is between it and the browser may answer in others.
async function why(answer) {
  const text = await answer.text().catch(() => "");
  let message = `the service has answered with status ${answer.status}`;
  try {
    message = JSON.parse(text).error.message ?? message;
  } catch {
    // no JSON: the status has to do
  }
  const seconds = Number(answer.headers.get("Retry-After"));
  return sentence(message) + (seconds > 0 ? ` There may be room in ${seconds} s.` : "");
}

export function sentence(text) {
  const begun = text.charAt(0).toUpperCase() + text.slice(1);
  return /[.?!]$/.test(begun) ? begun : `${begun}.`;
}

// Server-sent events of a stream; https://html.spec.whatwg.org/multipage/server-sent-events.html
async function* events(stream) {
  const reader = stream.pipeThrough(new TextDecoderStream()).getReader();
  let text = "";
  try {
    for (;;) {
      const { done, value } = await reader.read();
      if (done) {
        return;
      }
      text += value;
      const blocks = text.split("\n\n");
      text = blocks.pop();
      for (const block of blocks) {
        const data = block.split("\n").filter((line) => line.startsWith("data:")).map((line) => line.slice(5).trimStart());
        if (data.length) {
          yield JSON.parse(data.join("\n"));
        }
      }
    }
  } catch (error) {
    throw error instanceof TypeError ? new ServiceError(BROKEN_OFF) : error;
  } finally {
    reader.cancel().catch(() => {});
  }
}
