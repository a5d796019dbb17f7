
"use strict";
// Plays parts at their places in time. Each part that is due gets an <audio> element of its own, which streams: nothing
// is decoded ahead, however long the meeting. One clock leads; elements that stray from it are pulled back, and it
// waits for those that are still loading.
(() => {
  const AHEAD = 5;          // seconds before a part begins that its loading begins
  const MOST = 60;          // parts sounding at a time; browsers allow 75 players a page
  const PATIENCE = 15;      // seconds that the clock waits for audio that doesn't come
  const GRACE = 0.7;        // seconds that the others go on when one of them runs short of audio
  const JUMP = 0.25;        // seconds of drift that are mended by a jump; less is mended by speed
  const NEAR = 0.015;       // seconds of drift that are let be
  const QUIET = 1.5;        // seconds of silence that are worth skipping

  const $ = (selector, from = document) => from.querySelector(selector);
  const $$ = (selector, from = document) => [...from.querySelectorAll(selector)];
  const root = $("[data-begin]");
  if (!root) return;
  const begin = +root.dataset.begin, end = +root.dataset.end;
  const lanes = new Map($$(".lanes li").map((lane) => [lane.dataset.who, lane]));
  const parts = $$(".parts li[data-at]").map((row) => ({
    row,
    who: row.dataset.who,
    at: +row.dataset.at,
    end: +row.dataset.at + +row.dataset.for,
    src: $("a", row).href,
    twin: "twin" in row.dataset,
    button: $(".listen", row),
    is: { heard: false, played: false },
  }));
  const slider = $(".seek"), player = $(".player"), play = $(".play"), whose = $(".whose"), status = $("[role=status]");
  const everyone = $(".everyone"), skip = $("#skip"), speed = $("#speed"), clock = $(".clock b");

  let at = begin, wall = 0, pace = 1, playing = false, holding = false, only = null, said = "";
  const live = new Map();   // part -> {sound, since}: those whose audio is loading or sounding

  const now = () => (playing && !holding ? Math.min(at + ((performance.now() - wall) / 1000) * pace, stop()) : at);
  const isPart = () => only !== null && typeof only === "object";
  const picked = (part) => (only === null ? !part.twin : isPart() ? part === only : part.who === only && !part.twin);
  const stop = () => (isPart() ? only.end : end);
  const name = (who) => $(`#name-${who}`)?.textContent ?? who;

  function format(seconds, exact) {
    const tenths = Math.round(Math.abs(seconds) * 10);
    const whole = Math.floor(tenths / 10);
    const text = [Math.floor(whole / 3600), Math.floor(whole / 60) % 60, whole % 60];
    const shown = (text[0] ? [text[0], String(text[1]).padStart(2, "0")] : [text[1]]).join(":");
    const sign = seconds < 0 && tenths ? "\u2212" : "";
    return `${sign}${shown}:${String(text[2]).padStart(2, "0")}${exact ? `.${tenths % 10}` : ""}`;
  }

  function spoken(seconds) {
    const whole = Math.round(Math.abs(seconds));
    const words = [[Math.floor(whole / 3600), "hour"], [Math.floor(whole / 60) % 60, "minute"], [whole % 60, "second"]];
    const text = words.filter(([count, unit]) => count || unit === "second");
    const before = seconds < 0 && whole ? " before the recording's start" : "";
    return text.map(([count, unit]) => `${count} ${unit}${count === 1 ? "" : "s"}`).join(" ") + before;
  }

  function say(text) {
    if (text !== said) status.textContent = said = text;
  }

  // -- the clock and the sounds

  function open(part) {
    const sound = new Audio();
    sound.preload = "auto";
    sound.src = part.src;
    const entry = { sound, since: performance.now(), dry: null, begun: false, lost: false };
    sound.addEventListener("error", () => { entry.lost = true; });
    live.set(part, entry);
    return entry;
  }

  function close(part) {
    const { sound } = live.get(part);
    live.delete(part);
    sound.pause();
    sound.removeAttribute("src");
    sound.load();
  }

  function keepTime() {
    let time = now();
    const wanted = parts.filter((part) => picked(part) && part.at < time + AHEAD * pace && part.end > time);
    wanted.sort((one, other) => one.at - other.at);
    const due = new Set(wanted.slice(0, MOST));
    for (const part of [...live.keys()]) if (!due.has(part)) close(part);
    if (!playing) {
      for (const { sound } of live.values()) sound.pause();
      return time;
    }
    const sounding = [];
    let lost = 0, waiting = false;
    for (const part of due) {
      const entry = live.get(part) ?? open(part), { sound } = entry;
      if (entry.lost) { lost += 1; continue; }
      const place = Math.max(0, time - part.at);
      if (sound.readyState < 1) {
        waiting ||= part.at <= time && isWaitedFor(entry);
        continue;
      }
      if (part.at > time || place >= sound.duration) {
        if (!sound.paused) sound.pause();
        if (part.at > time && sound.currentTime !== 0 && !sound.seeking) sound.currentTime = 0;
        continue;
      }
      if (!sound.seeking && Math.abs(sound.currentTime - place) > JUMP * pace) sound.currentTime = place;
      if (sound.seeking || sound.readyState < 3) {
        waiting ||= isWaitedFor(entry);
        continue;
      }
      entry.since = performance.now();
      entry.dry = null;
      sounding.push([part, entry]);
    }
    if (waiting !== holding) {
      at = time;
      holding = waiting;
      wall = performance.now();
    }
    time = now();
    for (const [part, entry] of sounding) {
      const { sound } = entry;
      if (holding) {
        sound.pause();
      } else {
        entry.begun = true;
        const drift = sound.currentTime - (time - part.at);
        const pull = Math.abs(drift) < NEAR ? 0 : Math.max(-0.08, Math.min(0.08, drift * 0.5));
        sound.playbackRate = pace * (1 - pull);
        if (sound.paused) sound.play().catch((error) => { if (error.name === "NotAllowedError") pause(); });
      }
    }
    const gone = lost === 1 ? "1 part" : `${lost} parts`;
    say(holding ? "Waiting for audio" : lost ? `Playing, without ${gone} that can’t be loaded` : "Playing");
    if (time >= stop()) finish();
    else if (skip.checked && !isPart() && !holding) leap(time);
    return now();
  }

  function isWaitedFor(entry) {
    const moment = performance.now();
    entry.dry ??= moment;
    const isShort = holding || !entry.begun || moment - entry.dry > GRACE * 1000;
    return isShort && moment - entry.since < PATIENCE * 1000;
  }

  function goOn() {
    wall = performance.now();
    for (const entry of live.values()) Object.assign(entry, { since: wall, dry: null, begun: false });
  }

  function leap(time) {
    if (parts.some((part) => picked(part) && part.at <= time && part.end > time)) return;
    const next = Math.min(...parts.filter((part) => picked(part) && part.at > time).map((part) => part.at));
    if (next === Infinity) finish();
    else if (next - time > QUIET) seek(next - 0.3);
  }

  function start() {
    if (at >= stop() - 0.05 || at < (isPart() ? only.at : begin)) at = isPart() ? only.at : begin;
    playing = true;
    goOn();
    draw();
  }

  function pause() {
    at = now();
    playing = holding = false;
    say("Paused");
    draw();
  }

  function finish() {
    at = stop();
    playing = holding = false;
    say("At the end");
    draw();
  }

  function seek(time) {
    at = Math.max(begin, Math.min(end, time));
    if (isPart() && (at < only.at || at > only.end)) choose(null);
    goOn();
    draw();
  }

  function choose(what) {
    at = now();
    wall = performance.now();
    only = what;
    $("bdi", whose).textContent = what === null ? "Everyone" : name(isPart() ? what.who : what);
    $("span", whose).textContent = isPart() ? `, the part at ${format(what.at, true)}` : what === null ? "" : ", alone";
    everyone.hidden = what === null;
    draw();
  }

  // -- what is seen of it

  function draw() {
    const time = keepTime();
    const share = `${(100 * (time - begin)) / (end - begin)}%`;
    root.style.setProperty("--at", share);
    root.style.setProperty("--seen", "1");
    clock.textContent = format(time);
    slider.setAttribute("aria-valuenow", time.toFixed(1));
    player.toggleAttribute("data-on", playing);
    play.setAttribute("aria-label", playing ? "Pause" : "Play");
    const talking = new Set();
    for (const part of parts) {
      const here = part.at <= time && part.end > time;
      if (here && picked(part)) talking.add(part.who);
      const is = { heard: here && picked(part), played: playing && part === only };
      if (is.heard !== part.is.heard) part.row.classList.toggle("now", is.heard);
      if (is.played !== part.is.played) part.button.textContent = is.played ? "Pause" : "Play";
      part.is = is;
    }
    for (const [who, lane] of lanes) {
      lane.classList.toggle("on", talking.has(who));
      lane.classList.toggle("off", only !== null && who !== (isPart() ? only.who : only));
      $(".only", lane).setAttribute("aria-pressed", String(only === who));
    }
    const names = [...talking].slice(0, 3).map(name).join(", ") + (talking.size > 3 ? " and more" : "");
    slider.setAttribute("aria-valuetext", `${spoken(time)} of ${spoken(end)}, ${names || "silence"}`);
  }

  setInterval(() => { if (playing) keepTime(); }, 100);
  let drawn = 0;
  const frame = (moment) => {
    if (playing && moment - drawn > 30) {
      drawn = moment;
      draw();
    }
    requestAnimationFrame(frame);
  };
  requestAnimationFrame(frame);

  // -- hands

  const toggle = () => (playing ? pause() : start());
  play.addEventListener("click", toggle);
  everyone.addEventListener("click", () => {
    choose(null);
    play.focus();
  });
  speed.addEventListener("change", () => {
    at = now();
    wall = performance.now();
    pace = +speed.value;
  });
  for (const [who, lane] of lanes) {
    $(".only", lane).addEventListener("click", () => choose(only === who ? null : who));
  }
  for (const part of parts) {
    part.button.addEventListener("click", () => {
      if (only === part) {
        toggle();
      } else {
        choose(part);
        seek(part.at);
        if (!playing) start();
      }
    });
  }
  slider.addEventListener("keydown", (event) => {
    const step = { ArrowLeft: -5, ArrowDown: -5, ArrowRight: 5, ArrowUp: 5, PageDown: -60, PageUp: 60 }[event.key];
    if (event.ctrlKey || event.altKey || event.metaKey) return;
    if (step) seek(now() + step);
    else if (event.key === "Home") seek(begin);
    else if (event.key === "End") seek(end);
    else if (event.key === " " || event.key === "Enter") toggle();
    else return;
    event.preventDefault();
  });
  const toTime = (event) => {
    const box = slider.getBoundingClientRect();
    return begin + ((event.clientX - box.left) / box.width) * (end - begin);
  };
  for (const track of [slider, ...$$(".track")]) {
    track.addEventListener("pointerdown", (event) => {
      if (event.button) return;
      track.setPointerCapture(event.pointerId);
      seek(toTime(event));
    });
    track.addEventListener("pointermove", (event) => {
      if (track.hasPointerCapture(event.pointerId)) seek(toTime(event));
    });
  }
  const unfold = () => {
    const target = location.hash && document.getElementById(location.hash.slice(1));
    if (target?.tagName === "DETAILS") target.open = true;
  };
  addEventListener("hashchange", unfold);
  unfold();

  document.body.classList.add("live");
  for (const control of $$("[data-live]")) control.hidden = false;
  draw();
})();
