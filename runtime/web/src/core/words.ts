/** Word numbers and word-pair numbers of a text, as `mars_edge/preprocess.py` hashes them. */

/** The tensor (2, length): the first words, zeros after the last one. */
export function wordNumbers(text: string, length: number, vocabulary: number): Float32Array {
  const numbers = new Float32Array(2 * length);
  let before = "";
  splitWords(text, length).forEach((word, at) => {
    numbers[at] = bucket(`1 ${word}`, vocabulary);
    numbers[length + at] = bucket(`2 ${before} ${word}`, vocabulary);
    before = word;
  });
  return numbers;
}

/** The first `most` runs of letters and digits, in lower case, compatible characters made one (Unicode NFKC). */
export function splitWords(text: string, most: number): string[] {
  return (text.normalize("NFKC").toLowerCase().match(/[\p{L}\p{N}]+/gu) ?? []).slice(0, most);
}

function bucket(text: string, vocabulary: number): number {
  return 1 + (crc32(new TextEncoder().encode(text)) % (vocabulary - 1));
}

/** The checksum of ISO 3309, as zlib computes it. */
export function crc32(bytes: Uint8Array): number {
  let crc = 0xffffffff;
  for (const byte of bytes) {
    crc ^= byte;
    for (let bit = 0; bit < 8; bit += 1) crc = (crc >>> 1) ^ (crc & 1 ? 0xedb88320 : 0);
  }
  return (crc ^ 0xffffffff) >>> 0;
}
