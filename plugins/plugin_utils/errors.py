# Copyright (c) 2026 The sojourn.deploy authors
# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
"""The one exception type of this collection and its catalogue; not the place where errors are shown.

The catalogue is ``agent/api/errors.json``, which the agent embeds too. Standard library only: every worker imports this.
"""

from __future__ import annotations

import functools
import json
import os
import string
import typing as t

#: agent/api below the collection's root; the two contract files live there.
API_FOLDER = os.path.join(os.path.dirname(os.path.dirname(os.path.dirname(os.path.abspath(__file__)))), 'agent', 'api')

INTERNAL = 'SD-903'


@functools.lru_cache(maxsize=1)
def catalogue() -> dict[str, dict[str, str]]:
    """The catalogue by code. Read once, when the first error is made."""
    with open(os.path.join(API_FOLDER, 'errors.json'), encoding='utf-8') as file:
        return {entry['code']: entry for entry in json.load(file)['errors']}


def placeholders(code: str) -> set[str]:
    """Names in braces in an entry's sentence and remedy."""
    entry = catalogue()[code]
    return {parsed[1] for text in (entry['sentence'], entry['remedy']) for parsed in string.Formatter().parse(text) if parsed[1]}


class _Fields(dict):
    """Fields for a sentence: what nobody filled in shows as its name, since an error must never fail to be shown."""

    def __missing__(self, key: str) -> str:
        return f'<{key}>'


def _one_line(value: t.Any) -> str:
    return ' '.join(str(value).split())


class SojournError(Exception):
    """An error of the catalogue, with the host and the step that it happened in.

    ``kind`` is ``unreachable`` (Ansible marks the host unreachable) or ``failed``. ``str()`` is one line:
    ``[host] step: sentence (SD-xxx) Remedy: remedy``.
    """

    def __init__(self, code: str, *, host: str | None = None, step: str | None = None, **fields: t.Any) -> None:
        entry = catalogue().get(code)
        if entry is None:
            fields = {'detail': f'error {code} is not in the catalogue: {fields}'}
            code = INTERNAL
            entry = catalogue()[code]
        self.code = code
        self.name = entry['name']
        self.kind = entry['kind']
        # A library's message often ends with the full stop that the sentence has already.
        self.fields = {name: _one_line(value).rstrip('.') for name, value in fields.items()}
        self.host = host
        self.step = step
        #: Set when the error came from elsewhere (a fault of the agent), which wrote the sentence itself.
        self._sentence: str | None = None
        self._remedy: str | None = None
        #: Of a lost agent: whether what it was asked for may be asked of another, since it did not do it or doing it twice is no harm.
        self.again = False
        super().__init__(code)

    def _fill(self, text: str) -> str:
        fields = _Fields(self.fields)
        fields.setdefault('step', self.step or '<step>')
        return text.format_map(fields)

    @property
    def sentence(self) -> str:
        """What happened."""
        return self._sentence or self._fill(catalogue()[self.code]['sentence'])

    @property
    def remedy(self) -> str:
        """What to do about it."""
        return self._remedy or self._fill(catalogue()[self.code]['remedy'])

    def __str__(self) -> str:
        head = f'[{self.host}] ' if self.host else ''
        step = f'{self.step}: ' if self.step else ''
        return _one_line(f'{head}{step}{self.sentence} ({self.code}) Remedy: {self.remedy}')

    def __repr__(self) -> str:
        return f'SojournError({self!s})'

    def at(self, *, host: str | None = None, step: str | None = None) -> SojournError:
        """Adds where it happened, if that is not yet known; returns itself."""
        self.host = self.host or host
        self.step = self.step or step
        return self

    def redacted(self, secrets: t.Iterable[str | None]) -> SojournError:
        """Replaces secrets that a library put into its own message; returns itself."""
        for secret in secrets:
            if not secret:
                continue
            self.fields = {name: value.replace(secret, '********') for name, value in self.fields.items()}
            if self._sentence:
                self._sentence = self._sentence.replace(secret, '********')
            if self._remedy:
                self._remedy = self._remedy.replace(secret, '********')
        return self

    # On the broker's socket

    def to_dict(self) -> dict[str, t.Any]:
        """Form for the broker's socket; see ``from_dict``."""
        return {'code': self.code, 'fields': self.fields, 'host': self.host, 'step': self.step, 'sentence': self._sentence, 'remedy': self._remedy}

    @classmethod
    def from_dict(cls, data: dict[str, t.Any]) -> SojournError:
        """What ``to_dict`` made."""
        error = cls(str(data['code']), host=data.get('host'), step=data.get('step'), **(data.get('fields') or {}))
        error._sentence = data.get('sentence')
        error._remedy = data.get('remedy')
        return error

    # From the agent

    @classmethod
    def from_ready(cls, data: dict[str, t.Any], *, host: str | None = None, step: str | None = None) -> SojournError:
        """The agent's answer at start-up where it cannot serve: ``{"code": ..., "fields": {...}}`` (docs/architecture.md, Start-up)."""
        fields = {str(name): value for name, value in (data.get('fields') or {}).items() if name not in ('host', 'step')}
        return cls(str(data.get('code') or INTERNAL), host=host, step=step, **fields)

    @classmethod
    def from_fault(cls, code: str | None, sentence: str | None, remedy: str | None, *, host: str | None = None, step: str | None = None) -> SojournError:
        """A SOAP fault's detail (type ``FaultDetail`` of the WSDL). A code that this catalogue lacks keeps the agent's own words."""
        if code not in catalogue():
            error = cls('SD-505', host=host, step=step, detail=f'fault {code}: {sentence}')
            return error
        error = cls(code, host=host, step=step)
        error._sentence = _one_line(sentence or '') or None
        error._remedy = _one_line(remedy or '') or None
        return error
