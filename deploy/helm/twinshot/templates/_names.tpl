{{/* The chart's name, as labels have it. */}}
{{- define "twinshot.name" -}}
{{- .Values.nameOverride | default .Chart.Name | trunc 63 | trimSuffix "-" }}
{{- end }}

{{/* The name of most objects; the longest suffix is that of the Job, 18 characters of 63. */}}
{{- define "twinshot.fullname" -}}
{{- $name := include "twinshot.name" . }}
{{- $full := ternary .Release.Name (printf "%s-%s" .Release.Name $name) (contains $name .Release.Name) }}
{{- .Values.fullnameOverride | default $full | trunc 45 | trimSuffix "-" }}
{{- end }}

{{- define "twinshot.serviceAccount" -}}
{{- .Values.serviceAccount.name | default (ternary (include "twinshot.fullname" .) "default" .Values.serviceAccount.create) }}
{{- end }}

{{- define "twinshot.claim" -}}
{{- .Values.cache.existingClaim | default (printf "%s-cache" (include "twinshot.fullname" .)) }}
{{- end }}

{{- define "twinshot.image" -}}
{{- $target := ternary "cpu" "cuda" (eq (int .Values.gpu.count) 0) }}
{{- $tag := .Values.image.tag | default (printf "%s-%s" .Chart.AppVersion $target) }}
{{- with .Values.image.digest }}{{ $.Values.image.repository }}@{{ . }}{{ else }}{{ .Values.image.repository }}:{{ $tag }}{{ end }}
{{- end }}

{{/* What a pod is found by, of one component: (list $ "server"). */}}
{{- define "twinshot.selector" -}}
{{- $root := index . 0 -}}
app.kubernetes.io/name: {{ include "twinshot.name" $root }}
app.kubernetes.io/instance: {{ $root.Release.Name }}
app.kubernetes.io/component: {{ index . 1 }}
{{- end }}

{{/* All labels of an object of one component: (list $ "server"). */}}
{{- define "twinshot.labels" -}}
{{- $root := index . 0 -}}
{{ include "twinshot.selector" . }}
app.kubernetes.io/version: {{ $root.Chart.AppVersion | quote }}
app.kubernetes.io/managed-by: {{ $root.Release.Service }}
app.kubernetes.io/part-of: twinshot
helm.sh/chart: {{ printf "%s-%s" $root.Chart.Name $root.Chart.Version | replace "+" "_" }}
{{- end }}
