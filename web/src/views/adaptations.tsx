/** Adaptations. */
export function Adaptations() {
  return <h1>Adaptations</h1>;
}
