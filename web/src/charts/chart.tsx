/** Series over time, drawn by uPlot: loaded when the first one is shown. */
import "uplot/dist/uPlot.min.css";
import { type ReactElement, useEffect, useRef, useState } from "react";
import uPlot from "uplot";
import { time } from "../format";
import { t } from "../i18n";
import { at, type Series } from "./series";

interface Props {
  title: string;
  /** Seconds since 1970, in order. */
  times: readonly number[];
  series: readonly Series[];
  format: (value: number) => string;
}

/** Told apart on dark and on light, and by who sees no red or green. */
const COLOURS = ["#4a90e2", "#d9772b", "#2a9d8f", "#a667d3", "#b59a00", "#7a8699", "#d0517b"] as const;
const HEIGHT_PX = 180;
const WIDTH_PX_MIN = 200;
const ROWS_MAX = 100;

function colour(index: number): string {
  return COLOURS[index % COLOURS.length] ?? COLOURS[0];
}

/** The plot itself. The words beside it say what it shows to those who do not see it. */
function usePlot({ times, series, format }: Props, hovered: (index: number | null) => void): React.RefObject<HTMLDivElement | null> {
  const holder = useRef<HTMLDivElement>(null);
  const plot = useRef<uPlot | null>(null);
  const latest = useRef({ times, series, format, hovered });
  latest.current = { times, series, format, hovered };
  const names = series.map(({ label }) => label).join("\n");
  useEffect(() => {
    const element = holder.current;
    if (element === null) return undefined;
    const draw = (): void => {
      plot.current?.destroy();
      const axis = { stroke: getComputedStyle(element).color, grid: { stroke: "rgba(128, 128, 128, 0.25)" }, ticks: { stroke: "rgba(128, 128, 128, 0.25)" } };
      plot.current = new uPlot(
        {
          width: Math.max(WIDTH_PX_MIN, element.clientWidth),
          height: HEIGHT_PX,
          legend: { show: false },
          cursor: { drag: { x: false, y: false } },
          scales: { y: { range: (_, __, most) => [0, most > 0 ? most * 1.05 : 1] } },
          axes: [axis, { ...axis, size: 76, values: (_, ticks) => ticks.map((tick) => latest.current.format(tick)) }],
          series: [{}, ...latest.current.series.map(({ label }, index) => ({ label, stroke: colour(index), width: 2, points: { show: false } }))],
          hooks: { setCursor: [(drawn) => latest.current.hovered(drawn.cursor.idx ?? null)] },
        },
        [[...latest.current.times], ...latest.current.series.map(({ values }) => [...values])],
        element,
      );
    };
    draw();
    const themed = new MutationObserver(draw);
    themed.observe(document.documentElement, { attributes: true, attributeFilter: ["class"] });
    const resized = new ResizeObserver(() => plot.current?.setSize({ width: Math.max(WIDTH_PX_MIN, element.clientWidth), height: HEIGHT_PX }));
    resized.observe(element);
    return () => {
      themed.disconnect();
      resized.disconnect();
      plot.current?.destroy();
      plot.current = null;
    };
  }, [names]);
  useEffect(() => plot.current?.setData([[...times], ...series.map(({ values }) => [...values])]), [times, series]);
  return holder;
}

export default function Chart(props: Props): ReactElement {
  const { title, times, series, format } = props;
  const [hovered, setHovered] = useState<number | null>(null);
  const holder = usePlot(props, setHovered);
  const shown = hovered ?? times.length - 1;
  const moment = times[shown];
  return (
    <figure className="nc-chart" aria-label={t(title)}>
      <figcaption>
        <strong>{t(title)}</strong>
        {moment !== undefined && <span className="nc-small"> {time(new Date(1000 * moment).toISOString())}</span>}
        <ul className="nc-legend">
          {series.map(({ label, values }, index) => (
            <li key={label}>
              <svg width="12" height="12" aria-hidden="true">
                <rect width="12" height="12" fill={colour(index)} />
              </svg>{" "}
              {t(label)}: {at(values, shown, format)}
            </li>
          ))}
        </ul>
      </figcaption>
      <div ref={holder} aria-hidden="true" />
      <details>
        <summary>{t("As a table: {title}", { title: t(title) })}</summary>
        <div className="nc-figures" tabIndex={0} role="region" aria-label={t(title)}>
          <table>
            <thead>
              <tr>
                <th scope="col">{t("Time")}</th>
                {series.map(({ label }) => (
                  <th scope="col" key={label}>
                    {t(label)}
                  </th>
                ))}
              </tr>
            </thead>
            <tbody>
              {[...times.keys()].reverse().slice(0, ROWS_MAX).map((index) => (
                <tr key={times[index]}>
                  <th scope="row">{time(new Date(1000 * (times[index] ?? 0)).toISOString())}</th>
                  {series.map(({ label, values }) => (
                    <td key={label}>{at(values, index, format)}</td>
                  ))}
                </tr>
              ))}
            </tbody>
          </table>
        </div>
      </details>
    </figure>
  );
}
