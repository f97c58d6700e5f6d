/** Log-mel power spectrograms in 0..1: 0 is -80 dB and below, 1 is 0 dB; as `mars_edge/preprocess.py` defines them. */
import { Spectrum } from "./fourier";
import { audioFrames, frameSamples, hopSamples, type Modality } from "./modality";

const FLOOR_DB = -80;

interface Analysis {
  readonly hann: Float64Array;
  readonly weight: number;
  readonly filters: Float64Array[];
  readonly spectrum: Spectrum;
}

const analyses = new Map<string, Analysis>();

/** The spectrogram (mel_bands, frames) of one full window. */
export function logMel(modality: Modality, window: Float32Array): Float32Array {
  const [frame, hop, frames] = [frameSamples(modality), hopSamples(modality), audioFrames(modality)];
  const { hann, weight, filters, spectrum } = analysisOf(modality, frame);
  const out = new Float32Array(modality.melBands * frames);
  for (let t = 0; t < frames; t += 1) {
    const part = Float64Array.from(hann, (value, i) => window[t * hop + i]! * value);
    const power = spectrum.power(part);
    filters.forEach((filter, band) => {
      let sum = 0;
      for (let k = 0; k < filter.length; k += 1) sum += (filter[k]! * power[k]!) / weight;
      const decibels = 10 * Math.log10(Math.max(sum, 1e-12));
      out[band * frames + t] = Math.min(Math.max(1 - decibels / FLOOR_DB, 0), 1);
    });
  }
  return out;
}

function analysisOf(modality: Modality, frame: number): Analysis {
  const key = `${modality.melBands} ${frame} ${modality.rateHz}`;
  const known = analyses.get(key);
  if (known !== undefined) return known;
  // The periodic form, as usual for spectral analysis.
  const hann = Float64Array.from({ length: frame }, (_, i) => 0.5 - 0.5 * Math.cos((2 * Math.PI * i) / frame));
  const weight = hann.reduce((a, b) => a + b, 0) ** 2;
  const filters = melFilters(modality.melBands, frame, modality.rateHz);
  const analysis = { hann, weight, filters, spectrum: new Spectrum(frame) };
  analyses.set(key, analysis);
  return analysis;
}

/** Triangular filters over the bins of a spectrum, peak 1, evenly spaced on the mel scale. */
function melFilters(bands: number, frame: number, rateHz: number): Float64Array[] {
  const topMel = 2595 * Math.log10(1 + rateHz / 2 / 700);
  const edges = Array.from({ length: bands + 2 }, (_, i) => 700 * (10 ** ((topMel * i) / (bands + 1) / 2595) - 1));
  return Array.from({ length: bands }, (_, band) => {
    const [low, centre, high] = [edges[band]!, edges[band + 1]!, edges[band + 2]!];
    return Float64Array.from({ length: (frame >> 1) + 1 }, (_bin, k) => {
      const hz = (k * rateHz) / frame;
      return Math.max(0, Math.min((hz - low) / (centre - low), (high - hz) / (high - centre)));
    });
  });
}
