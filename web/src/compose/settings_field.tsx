/** The settings: a preset, and behind "advanced" every one of them. */
import { adapt, edited, preset } from "./draft";
import { PRESETS, settingsText, type PresetName } from "./presets";

export function SettingsField() {
  return (
    <>
      <fieldset class="presets">
        <legend>Settings</legend>
        {(Object.keys(PRESETS) as PresetName[]).map((name) => (
          <label key={name} class="preset">
            <input
              type="radio"
              name="preset"
              checked={preset.value === name}
              onChange={() => {
                preset.value = name;
                edited.value = null;
              }}
            />
            <b>{name}</b>
            <span>{PRESETS[name]}</span>
          </label>
        ))}
      </fieldset>
      <details class="advanced">
        <summary>Advanced: every setting {edited.value !== null && "(changed)"}</summary>
        <label class="field">
          <span>
            The <code>adapt</code> object of the request, as JSON
          </span>
          <textarea
            class="code"
            spellcheck={false}
            rows={14}
            value={edited.value ?? settingsText(preset.value)}
            onInput={(event) => (edited.value = event.currentTarget.value)}
          />
        </label>
        {adapt.value.error && (
          <p role="alert" class="problem">
            {adapt.value.error}
          </p>
        )}
        {edited.value !== null && (
          <button type="button" onClick={() => (edited.value = null)}>
            Back to {preset.value}
          </button>
        )}
      </details>
    </>
  );
}
