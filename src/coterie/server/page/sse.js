// Server-sent events from the body of a fetch: what the browser's EventSource does for GET only.

/** The data of each event. Comments, other fields and CRLF are taken as the standard says. */
export async function* eventsOf(body) {
  const reader = body.getReader();
  const decoder = new TextDecoder();
  let rest = "";
  let lines = [];
  try {
    for (;;) {
      const { value, done } = await reader.read();
      if (done) return; // an event that no blank line ends is none
      rest += decoder.decode(value, { stream: true });
      const parts = rest.split(/\r\n|\n|\r(?!$)/); // a CR at the end may be half of CRLF
      rest = parts.pop();
      for (const line of parts) {
        if (line === "") {
          if (lines.length) yield lines.join("\n");
          lines = [];
        } else if (line.startsWith("data:")) {
          lines.push(line.slice(line[5] === " " ? 6 : 5));
        }
      }
    }
  } finally {
    reader.cancel().catch(() => {});
  }
}
