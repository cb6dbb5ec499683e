'use strict';
const at = id => document.getElementById(id);
const given = new URLSearchParams(location.hash.slice(1));
const link = given.get('link');
// The secret goes from the address, and so from the history; a reload takes another link.
history.replaceState(null, '', location.pathname);
if (link) {
  at('form').hidden = false;
  if (given.get('name')) {
    at('name').value = given.get('name');
    at('name').readOnly = true;
  }
} else {
  at('said').textContent = 'This page is opened by a link: run `fanfare admin link` on the server.';
}
at('form').addEventListener('submit', async event => {
  event.preventDefault();
  if (at('password').value !== at('again').value) {
    at('said').textContent = 'The passwords differ.';
    return;
  }
  at('send').disabled = true;
  at('said').textContent = 'Asking the server.';
  try {
    const answer = await fetch('/v1/admin/claim', {
      method: 'POST',
      headers: { 'content-type': 'application/json' },
      body: JSON.stringify({ link, name: at('name').value, password: at('password').value }),
    });
    const body = await answer.json();
    if (answer.ok) {
      at('form').remove();
      at('said').textContent = `${body.name} is an administrator, and signed in.`;
      at('curl').textContent = `curl -H 'Authorization: Bearer ${body.token}' ${location.origin}/admin/v1/status`;
      at('done').hidden = false;
      return;
    }
    at('said').textContent = `${body.code}: ${body.detail}`;
  } catch {
    at('said').textContent = 'The server did not answer; try again.';
  }
  at('send').disabled = false;
});
