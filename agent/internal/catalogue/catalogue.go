// Package catalogue turns the project's error catalogue into Go error values: a code, the fields of its sentence, nothing else.
package catalogue

import (
	"encoding/json"
	"errors"
	"maps"
	"slices"
	"strings"
	"sync"

	"sojourn.example/agent/api"
)

// Error is an error of the catalogue. It travels as its code and fields; the sentence is made where it is shown.
type Error struct {
	Code   string            `json:"code"`
	Fields map[string]string `json:"fields"`
}

type entry struct {
	Code     string `json:"code"`
	Sentence string `json:"sentence"`
	Remedy   string `json:"remedy"`
}

// The catalogue is read on first need: an agent that meets no error never parses it.
var entries = sync.OnceValue(func() map[string]entry {
	var file struct {
		Errors []entry `json:"errors"`
	}
	if err := json.Unmarshal(api.Errors, &file); err != nil {
		panic("errors.json: " + err.Error()) // embedded at build time: a test reads it
	}
	byCode := make(map[string]entry, len(file.Errors))
	for _, e := range file.Errors {
		byCode[e.Code] = e
	}
	return byCode
})

// maximumField bounds a field's value. A path fits; 8 MiB that a client sent in place of one would come back several times over.
const maximumField = 8 << 10

// New makes an error of the catalogue; pairs are field names and their values in turn.
func New(code string, pairs ...string) *Error {
	fields := make(map[string]string, len(pairs)/2)
	for i := 0; i+1 < len(pairs); i += 2 {
		value := pairs[i+1]
		if len(value) > maximumField {
			value = strings.ToValidUTF8(value[:maximumField], "") + "..."
		} else {
			// Windows ends its messages with a full stop, and the sentence has its own.
			value = strings.TrimRight(value, ". \r\n")
		}
		fields[pairs[i]] = value
	}
	return &Error{Code: code, Fields: fields}
}

// As gives err itself where it is of the catalogue, and SD-903 with its text where it is not.
func As(err error, step string) *Error {
	var known *Error
	if errors.As(err, &known) {
		return known
	}
	return New("SD-903", "step", step, "detail", err.Error())
}

// Sentence says what happened.
func (e *Error) Sentence() string {
	pairs := make([]string, 0, 2*len(e.Fields))
	for _, name := range slices.Sorted(maps.Keys(e.Fields)) {
		pairs = append(pairs, "{"+name+"}", e.Fields[name])
	}
	return strings.NewReplacer(pairs...).Replace(entries()[e.Code].Sentence)
}

// Remedy says what to do about it.
func (e *Error) Remedy() string {
	pairs := make([]string, 0, 2*len(e.Fields))
	for name, value := range e.Fields {
		pairs = append(pairs, "{"+name+"}", value)
	}
	return strings.NewReplacer(pairs...).Replace(entries()[e.Code].Remedy)
}

// Error makes it an error.
func (e *Error) Error() string { return e.Code + ": " + e.Sentence() }

// Known tells whether the catalogue has the code.
func Known(code string) bool { _, ok := entries()[code]; return ok }

// Sentences gives code and bare sentence of each entry, for the tests that compare fields with it.
func Sentences() map[string]string {
	sentences := make(map[string]string)
	for code, e := range entries() {
		sentences[code] = e.Sentence
	}
	return sentences
}
