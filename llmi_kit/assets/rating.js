// Key presses and clicks become ratings; the server answers where to go next. Nothing here knows who wrote what.
'use strict'
const body = document.body, item = body.dataset.item, said = document.querySelector('.said'), note = document.getElementById('note')
const rows = [...document.querySelectorAll('.row')], pressed = row => row.querySelector('[aria-pressed=true]')
let busy = false, saving = Promise.resolve(true), kept = note ? note.value : '', began = performance.now(), hidden = 0, left = 0
let active = rows.find(row => !pressed(row)) || rows[0]

document.addEventListener('visibilitychange', () => {   // a rater who is away takes no time
  if (document.hidden) left = performance.now(); else if (left) hidden += performance.now() - left
})
function seconds() { return Math.round((performance.now() - began - hidden) / 100) / 10 }

function mark(row) {
  active = row
  for (const r of rows) r.classList.toggle('active', r === row)
}

function say(words, bad) {
  said.textContent = words
  said.classList.toggle('bad', Boolean(bad))
}

async function send(what) {
  try {
    const reply = await fetch('act', {method: 'POST', headers: {'Content-Type': 'application/json'}, body: JSON.stringify({item: item, ...what})})
    const told = await reply.json()
    if (reply.ok) return told
    say(told.problem, true)
  } catch {
    say('Not saved: the server does not answer. Start `llmi rate` again; what was saved before is kept.', true)
  }
}

function keep() {     // the note, when it has changed; one after the other
  return saving = saving.then(async () => {
    const words = note ? note.value : ''
    if (words === kept) return true
    const done = await send({do: 'note', note: words})
    if (!done) return false
    kept = words
    say('The note is saved.')
    return true
  })
}

async function alone(act) {     // a key that comes while another is being saved is not meant
  if (busy) return
  busy = true
  body.setAttribute('aria-busy', 'true')
  await act()
  busy = false
  body.removeAttribute('aria-busy')
}

async function rate(button) {
  const row = button.closest('.row'), inside = row.contains(document.activeElement)
  if (!await keep()) return
  const done = await send({do: 'rate', criterion: row.dataset.criterion, value: Number(button.dataset.value), seconds: seconds()})
  if (!done) return
  for (const b of row.querySelectorAll('button')) b.setAttribute('aria-pressed', String(b === button))
  if (done.go) return location.assign(done.go)
  began = performance.now()
  hidden = 0
  mark(rows.find(r => !pressed(r)) || row)
  if (inside) active.querySelector('button').focus()
  say(`${button.getAttribute('aria-label')}. Next: ${active.dataset.criterion}.`)
}

async function go(what) {
  const done = await keep() && await send({do: what})
  if (done && done.go) location.assign(done.go)
}

document.addEventListener('click', e => {
  const button = e.target.closest('button')
  if (button) alone(() => button.dataset.do ? go(button.dataset.do) : rate(button))
})

document.addEventListener('focusin', e => {
  const row = e.target.closest('.row')
  if (row) mark(row)
})

document.addEventListener('keydown', e => {
  if (busy || e.repeat || e.ctrlKey || e.altKey || e.metaKey || e.isComposing) return
  if (e.target === note) return e.key === 'Escape' && note.blur()
  const key = e.key === ' ' ? 'Space' : e.key
  if (['Space', 'Enter'].includes(key) && e.target.closest('a, button, summary')) return      // they have a meaning of their own there,
  if (['Space', 'ArrowLeft', 'ArrowRight'].includes(key) && e.target.closest('.scroll, pre')) return      // and move what is too wide
  const found = key === 'u' ? document.querySelector('[data-do=undo]')
    : active && [...active.querySelectorAll('button')].find(b => (b.dataset.keys || '').split(' ').includes(key))
  if (key === 'n' && note) { e.preventDefault(); note.focus() }
  if (found) { e.preventDefault(); found.click() }
})

if (note) note.addEventListener('blur', keep)
for (const a of document.querySelectorAll('main a[rel]')) a.target = '_blank'   // a link in a report must not end the rating
if (active) mark(active)
