// Stands in for wllama: answers with what was said last, for ever where that is "slow". A word is a token.
window.read = [];
export class Wllama {
  setCompat() {}
  async loadModel() {}
  async exit() {}
  async createCompletion({ prompt, onData, abortSignal }) {
    const words = prompt.replaceAll("<|im_end|>", " . ").trim().split(/\s+/);
    await window.held;  // a test may keep it waiting
    if (!onData) throw new Error(`request (${words.length} tokens) exceeds the available context size`);
    window.read.push(prompt);
    const said = prompt.split("<|im_start|>user\n").at(-1).split("<|im_end|>")[0];
    for (const piece of said === "slow" ? Array(3000).fill("so ") : [said.slice(0, 5), said.slice(5)]) {
      if (abortSignal.aborted) throw new DOMException("aborted", "AbortError");
      onData({ choices: [{ text: piece }] });
      await new Promise((resolve) => setTimeout(resolve, 10));
    }
  }
}
