// Package api holds the contracts that the agent shares with the controller, embedded as they stand in the repository.
package api

import _ "embed"

// WSDL is the service description.
//
//go:embed deploy.wsdl
var WSDL []byte

// Errors is the error catalogue.
//
//go:embed errors.json
var Errors []byte
