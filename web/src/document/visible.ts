/** Characters that would not be seen, or would change how their neighbours are seen. */

const CONTROL_PICTURES = 0x2400;
const DELETE = 0x7f;
// The C0 controls but tab and line feed, delete, the C1 controls, and marks that turn the direction.
const UNSEEN = /[\u0000-\u0008\u000b-\u001f\u007f-\u009f\u202a-\u202e\u2066-\u2069]/g;

/** Replace each unseen character by one that is seen, so that places in the text stay the same. */
export function visible(text: string): string {
  return text.replace(UNSEEN, (character) => {
    const code = character.charCodeAt(0);
    if (code < 0x20) return String.fromCharCode(CONTROL_PICTURES + code);
    return code === DELETE ? "␡" : "␦";
  });
}
