// This file holds the code to deploy.wsdl: operations, elements, their order, types and number.

package deploy

import (
	"encoding/xml"
	"maps"
	"reflect"
	"slices"
	"testing"
	"time"

	"sojourn.example/agent/api"
	"sojourn.example/agent/internal/soap"
)

type wsdlElement struct {
	Name      string       `xml:"name,attr"`
	Type      string       `xml:"type,attr"`
	MinOccurs string       `xml:"minOccurs,attr"`
	MaxOccurs string       `xml:"maxOccurs,attr"`
	Complex   *wsdlComplex `xml:"complexType"`
}

type wsdlComplex struct {
	Name     string        `xml:"name,attr"`
	Elements []wsdlElement `xml:"sequence>element"`
}

type wsdlFile struct {
	Schema struct {
		Simple []struct {
			Name string `xml:"name,attr"`
		} `xml:"simpleType"`
		Complex  []wsdlComplex `xml:"complexType"`
		Elements []wsdlElement `xml:"element"`
	} `xml:"types>schema"`
	Operations []struct {
		Name string `xml:"name,attr"`
	} `xml:"portType>operation"`
	Bound []struct {
		Name string `xml:"name,attr"`
	} `xml:"binding>operation"`
}

func readWSDL(t *testing.T) (file wsdlFile) {
	t.Helper()
	if err := xml.Unmarshal(api.WSDL, &file); err != nil {
		t.Fatal(err)
	}
	return file
}

func TestEveryOperationHasAHandlerAndTheReverse(t *testing.T) {
	var declared, bound []string
	for _, o := range readWSDL(t).Operations {
		declared = append(declared, o.Name)
	}
	for _, o := range readWSDL(t).Bound {
		bound = append(bound, o.Name)
	}
	handled := slices.Sorted(maps.Keys(New(Settings{}).operations()))
	slices.Sort(declared)
	slices.Sort(bound)
	if !slices.Equal(declared, handled) || !slices.Equal(bound, handled) {
		t.Errorf("declared %v\nbound %v\nhandled %v", declared, bound, handled)
	}
}

// messages are all requests and answers, by element name.
func messages() map[string]reflect.Type {
	all := make(map[string]reflect.Type)
	for name, o := range New(Settings{}).operations() {
		request := reflect.TypeOf(o.request()).Elem()
		all[name] = request
		if request.Name() != name {
			panic(name + " is handled as " + request.Name())
		}
	}
	for _, answer := range []any{
		GetInfoResponse{}, RenewLeaseResponse{}, ExecuteResponse{}, KeepArchiveResponse{}, PrepareInterpreterResponse{}, ListExecutionsResponse{}, ReadOutputResponse{}, WriteInputResponse{}, SignalResponse{},
		ReleaseResponse{}, PutFileResponse{}, GetFileResponse{}, StatResponse{}, RemoveResponse{}, ExtractResponse{},
		QueryPackagesResponse{}, OpenPortResponse{}, ClosePortResponse{}, ListPortsResponse{}, RemoveLeftoversResponse{}, ShutdownResponse{},
	} {
		all[reflect.TypeOf(answer).Name()] = reflect.TypeOf(answer)
	}
	return all
}

func TestMessagesAreThoseOfTheSchemaInItsOrder(t *testing.T) {
	file := readWSDL(t)
	types := make(map[string]wsdlComplex)
	for _, c := range file.Schema.Complex {
		types["t:"+c.Name] = c
	}
	simple := make(map[string]bool)
	for _, s := range file.Schema.Simple {
		simple["t:"+s.Name] = true
	}
	known := messages()
	for _, e := range file.Schema.Elements {
		if e.Name == "Fault" {
			continue // written by soap.Fault
		}
		message, ok := known[e.Name]
		if !ok {
			t.Errorf("no struct for %s", e.Name)
			continue
		}
		delete(known, e.Name)
		compare(t, e.Name, message, e.Complex.Elements, types, simple)
	}
	for name := range known {
		t.Errorf("the schema has no %s", name)
	}
}

func compare(t *testing.T, where string, message reflect.Type, elements []wsdlElement, types map[string]wsdlComplex, simple map[string]bool) {
	t.Helper()
	if message.NumField() != len(elements) {
		t.Errorf("%s has %d fields and %d elements", where, message.NumField(), len(elements))
		return
	}
	for i, e := range elements {
		field := message.Field(i)
		if field.Name != e.Name {
			t.Errorf("%s: field %d is %s, the schema has %s", where, i, field.Name, e.Name)
			continue
		}
		of, many, optional := field.Type, false, false
		switch {
		case of.Kind() == reflect.Pointer:
			of, optional = of.Elem(), true
		case of.Kind() == reflect.Slice && of != reflect.TypeFor[soap.Hex]():
			of, many = of.Elem(), true
		}
		if many != (e.MaxOccurs == "unbounded") || (optional || many) != (e.MinOccurs == "0") {
			t.Errorf("%s.%s: its number differs from the schema's (min %q, max %q)", where, e.Name, e.MinOccurs, e.MaxOccurs)
		}
		if complex, ok := types[e.Type]; ok {
			compare(t, where+"."+e.Name, of, complex.Elements, types, simple)
			continue
		}
		want := map[string][]reflect.Type{
			"xs:string":       {reflect.TypeFor[string]()},
			"xs:boolean":      {reflect.TypeFor[bool]()},
			"xs:int":          {reflect.TypeFor[int64]()},
			"xs:long":         {reflect.TypeFor[int64]()},
			"xs:double":       {reflect.TypeFor[float64]()},
			"xs:dateTime":     {reflect.TypeFor[time.Time]()},
			"xs:hexBinary":    {reflect.TypeFor[soap.Hex]()},
			"xs:base64Binary": {reflect.TypeFor[soap.Received](), reflect.TypeFor[soap.Payload]()},
		}[e.Type]
		if simple[e.Type] {
			want = []reflect.Type{reflect.TypeFor[string]()}
		}
		if !slices.Contains(want, of) {
			t.Errorf("%s.%s is %v, the schema has %s", where, e.Name, of, e.Type)
		}
	}
}
