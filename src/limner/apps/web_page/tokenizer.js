// Prompts to token ids, as limner/text/tokenizer.py has them: byte-level BPE.
class Tokenizer {
  // vocabulary: token -> id; merges: pairs "left right", those that were learned first stand first.
  constructor({vocabulary, merges}, maxLength) {
    this.ids = new Map(Object.entries(vocabulary));
    this.ranks = new Map(merges.map((pair, rank) => [pair, rank]));
    this.maxLength = maxLength;
    this.letters = [];  // how a byte is written in the vocabulary: GPT-2's printable characters
    for (let byte = 0, others = 0; byte < 256; byte++) {
      const printable = (byte >= 33 && byte <= 126) || (byte >= 161 && byte <= 172) || byte >= 174;
      this.letters.push(String.fromCodePoint(printable ? byte : 256 + others++));
    }
  }

  // <start> and the tokens of a prompt, as many as there are.
  encode(prompt) {
    let text = prompt.replace(/\p{Surrogate}/gu, "?");
    text = text.replace(Tokenizer.KNOWN, known => known.normalize("NFKC"));
    // One character at a time: a whole word's last sigma would become another letter.
    text = Array.from(text, character => character.toLowerCase()).join("");
    text = text.replace(/^\p{White_Space}+|\p{White_Space}+$/gu, "");
    const ids = [1];
    if (text)
      for (const [piece] of ` ${text}`.matchAll(Tokenizer.PIECES)) ids.push(...this.merged(piece));
    return ids;
  }

  // What the model reads: no more than it has positions for.
  read(prompt) {
    return this.encode(prompt).slice(0, this.maxLength);
  }

  merged(piece) {
    let parts = Array.from(new TextEncoder().encode(piece), byte => this.letters[byte]);
    while (parts.length > 1) {
      let best = null, lowest = Infinity;
      for (let i = 0; i + 1 < parts.length; i++) {
        const pair = `${parts[i]} ${parts[i + 1]}`, rank = this.ranks.get(pair);
        if (rank < lowest) [best, lowest] = [pair, rank];
      }
      if (best === null) break;
      const joined = [];
      for (let i = 0; i < parts.length; i++) {
        if (`${parts[i]} ${parts[i + 1]}` === best) joined.push(parts[i] + parts[++i]);
        else joined.push(parts[i]);
      }
      parts = joined;
    }
    return parts.map(part => this.ids.get(part));
  }
}
// All but letters and digits that have another form since Unicode 12.1: the `tokenizers` library has
// the tables of 12.0, and leaves them as they are.
Tokenizer.KNOWN = new RegExp(
  String.raw`[^\u{32ff}\u{a7f1}-\u{a7f4}\u{ab69}\u{10781}-\u{107ba}\u{1ccd6}-\u{1ccf9}\u{1f16c}`
  + String.raw`\u{1fbf0}-\u{1fbf9}]+`, "gu");
// Words, numbers, and signs, each with the space before it (GPT-2); \s of that is \p{White_Space}.
Tokenizer.PIECES = new RegExp(
  String.raw`'s|'t|'re|'ve|'m|'ll|'d| ?\p{L}+| ?\p{N}+| ?[^\p{White_Space}\p{L}\p{N}]+`
  + String.raw`|\p{White_Space}+(?!\P{White_Space})|\p{White_Space}+`, "gu");
