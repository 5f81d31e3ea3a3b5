{{/* Facts that several templates follow from; each is a text, empty for no. */}}

{{/* Whether the checkpoint is fetched from the Hub. */}}
{{- define "twinshot.fromHub" -}}
{{- $checkpoint := .Values.model.checkpoint }}
{{- if and (contains "/" $checkpoint) (not (hasPrefix "/" $checkpoint)) (not (hasPrefix "." $checkpoint)) }}yes{{ end }}
{{- end }}

{{/* Whether pods wait for the Job that fetches the checkpoint. */}}
{{- define "twinshot.prePulled" -}}
{{- if .Values.cache.prePull.enabled }}yes{{ end }}
{{- end }}

{{/* The mark of a fetched checkpoint: another one, or another image, is fetched anew. */}}
{{- define "twinshot.pull" -}}
{{- printf "%s %s" .Values.model.checkpoint (include "twinshot.image" .) | sha256sum | trunc 10 }}
{{- end }}

{{/* Whether strangers can reach the service. */}}
{{- define "twinshot.public" -}}
{{- if or .Values.ingress.enabled .Values.httpRoute.enabled (ne .Values.service.type "ClusterIP") }}yes{{ end }}
{{- end }}

{{/* The most pods there may be, an update aside. */}}
{{- define "twinshot.mostPods" -}}
{{- if .Values.keda.enabled }}{{ int .Values.keda.maxReplicas }}
{{- else if .Values.autoscaling.enabled }}{{ int .Values.autoscaling.maxReplicas }}
{{- else }}{{ int .Values.replicaCount }}{{ end }}
{{- end }}

{{/* The fewest pods there may be, an update aside. */}}
{{- define "twinshot.fewestPods" -}}
{{- if .Values.keda.enabled }}{{ int .Values.keda.minReplicas }}
{{- else if .Values.autoscaling.enabled }}{{ int .Values.autoscaling.minReplicas }}
{{- else }}{{ int .Values.replicaCount }}{{ end }}
{{- end }}

{{/* Seconds from the end of a pod's life in the endpoints until everything accepted must be done. */}}
{{- define "twinshot.farewellSeconds" -}}
{{- addf .Values.lifecycle.preStopSeconds .Values.server.drainSeconds .Values.server.shutdownSeconds | ceil }}
{{- end }}

{{- define "twinshot.graceSeconds" -}}
{{- if kindIs "invalid" .Values.terminationGracePeriodSeconds }}{{ add (include "twinshot.farewellSeconds" .) 10 }}
{{- else }}{{ int .Values.terminationGracePeriodSeconds }}{{ end }}
{{- end }}

{{/* A number as its option wants it: Helm makes 65536 a fraction and 1000000 an exponent. */}}
{{- define "twinshot.number" -}}
{{- if and (kindIs "float64" .) (eq (floor .) .) }}{{ int64 . }}{{ else }}{{ . }}{{ end }}
{{- end }}
