// This file writes an answer's envelope, and faults.

package soap

import (
	"bytes"
	"encoding/base64"
	"encoding/xml"
	"io"
	"reflect"
	"strconv"
	"time"

	"sojourn.example/agent/internal/catalogue"
)

// Answer is an envelope that has been made, but for the payloads in it.
type Answer struct {
	text     bytes.Buffer
	payloads []placed
	mtom     bool
}

// placed is a payload and where in the text it belongs.
type placed struct {
	Payload
	at int
}

const (
	envelopeStart = `<?xml version="1.0" encoding="UTF-8"?>` + "\n" +
		`<s:Envelope xmlns:s="` + EnvelopeNamespace + `"><s:Body>`
	envelopeEnd = `</s:Body></s:Envelope>`
)

// Encode makes the envelope of an answer. With mtom the payloads become attachments, else inline base64.
func Encode(element string, message any, mtom bool) *Answer {
	a := &Answer{mtom: mtom}
	a.text.WriteString(envelopeStart)
	a.text.WriteString("<t:" + element + ` xmlns:t="` + DeployNamespace + `">`)
	a.children(reflect.ValueOf(message).Elem())
	a.text.WriteString("</t:" + element + ">" + envelopeEnd)
	return a
}

func (a *Answer) children(of reflect.Value) {
	for i := range of.NumField() {
		field, element := of.Field(i), of.Type().Field(i).Name
		switch {
		case field.Kind() == reflect.Pointer:
			if !field.IsNil() {
				a.element(element, field.Elem())
			}
		case field.Kind() == reflect.Slice && field.Type() != reflect.TypeFor[Hex]():
			for j := range field.Len() {
				a.element(element, field.Index(j))
			}
		default:
			a.element(element, field)
		}
	}
}

func (a *Answer) element(element string, value reflect.Value) {
	a.text.WriteString("<t:" + element + ">")
	switch v := value.Interface().(type) {
	case string:
		xml.EscapeText(&a.text, []byte(v))
	case bool:
		a.text.WriteString(strconv.FormatBool(v))
	case int64:
		a.text.WriteString(strconv.FormatInt(v, 10))
	case float64:
		a.text.WriteString(strconv.FormatFloat(v, 'f', -1, 64))
	case time.Time:
		a.text.WriteString(v.UTC().Format("2006-01-02T15:04:05.999999999Z"))
	case Hex:
		a.text.WriteString(v.String())
	case Payload:
		if a.mtom {
			a.text.WriteString(`<xop:Include xmlns:xop="` + xopNamespace + `" href="cid:` + ContentID(len(a.payloads)) + `"/>`)
		}
		a.payloads = append(a.payloads, placed{v, a.text.Len()})
	default:
		if value.Kind() == reflect.Struct {
			a.children(value)
		} else {
			// Types of their own with a string underneath: the enumerations.
			xml.EscapeText(&a.text, []byte(value.String()))
		}
	}
	a.text.WriteString("</t:" + element + ">")
}

// ContentID names the payload of this index.
func ContentID(index int) string { return strconv.Itoa(index+1) + "@sojourn.deploy" }

// WriteRoot writes the envelope as the root part of an MTOM answer.
func (a *Answer) WriteRoot(to io.Writer) error {
	_, err := to.Write(a.text.Bytes())
	return err
}

// Payloads are the attachments of an MTOM answer, in order.
func (a *Answer) Payloads() []Payload {
	payloads := make([]Payload, len(a.payloads))
	for i, p := range a.payloads {
		payloads[i] = p.Payload
	}
	return payloads
}

// WriteInline writes the envelope with the payloads in it, as base64.
func (a *Answer) WriteInline(to io.Writer) error {
	text, from := a.text.Bytes(), 0
	for _, p := range a.payloads {
		if _, err := to.Write(text[from:p.at]); err != nil {
			return err
		}
		from = p.at
		encoder := base64.NewEncoder(base64.StdEncoding, to)
		if err := p.Write(encoder); err != nil {
			return err
		}
		if err := encoder.Close(); err != nil {
			return err
		}
	}
	_, err := to.Write(text[from:])
	return err
}

// Fault makes the envelope of a fault.
func Fault(faultCode string, e *catalogue.Error) []byte {
	var text bytes.Buffer
	element := func(name, value string) {
		text.WriteString("<" + name + ">")
		xml.EscapeText(&text, []byte(value))
		text.WriteString("</" + name + ">")
	}
	text.WriteString(envelopeStart + "<s:Fault>")
	element("faultcode", "s:"+faultCode)
	element("faultstring", e.Sentence())
	// SOAP 1.1, 4.4: no detail where the body was not what failed. The two codes below are about the envelope and header.
	if faultCode != FaultVersion && faultCode != FaultMustUnderstand {
		text.WriteString(`<detail><t:Fault xmlns:t="` + DeployNamespace + `">`)
		element("t:Code", e.Code)
		element("t:Sentence", e.Sentence())
		element("t:Remedy", e.Remedy())
		text.WriteString("</t:Fault></detail>")
	}
	text.WriteString("</s:Fault>" + envelopeEnd)
	return text.Bytes()
}
